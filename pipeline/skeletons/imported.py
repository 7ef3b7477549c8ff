"""Poses brought along, of a whole dataset in one HDF5 file, with what came with them: sizes, labels, splits.

Written and read clip by clip, so that memory does not grow with the dataset.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from harcache.pipeline.base.errors import refuse_newer
from harcache.pipeline.base.files import commit_file, partial_path, writing
from harcache.pipeline.skeletons.errors import PoseFileError

__all__ = ["ImportedPose", "ImportedPoses", "write_imported_poses"]

_FORMAT = "harcache.imported_poses/1"
_ROWS_AT_ONCE = 8192
_CHUNK_ROWS = 4096
_ROW_TABLES = ("keypoints", "scores", "positions")
_UNREADABLE = (OSError, LookupError, RuntimeError, ValueError, AttributeError, TypeError)
_REMEDY = "import its poses again"


@dataclass(frozen=True, slots=True)
class ImportedPose:
    """A clip's poses: M persons, T frames, V joints.

    ``keypoints`` (M, T, V, 2) float32, x before y, pixels of an image of ``image_size`` (height, width), all
    NaN where there are none, and ``scores`` (M, T, V) float32; ``positions`` (M, T, V, 3) float32 or None.
    NaN, and the score 0, where nobody is. ``image_size`` and ``label`` are None where they are not known.
    """

    id: str
    keypoints: np.ndarray
    scores: np.ndarray
    positions: np.ndarray | None = None
    image_size: tuple[int, int] | None = None
    label: int | None = None

    @property
    def digest(self) -> str:
        """The BLAKE2b-128 of what a clip's poses depend on, in hexadecimal digits."""
        digest = hashlib.blake2b(repr((self.keypoints.shape, self.image_size)).encode(), digest_size=16)
        for array in (self.keypoints, self.scores, self.positions):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def write_imported_poses(
    path: Path, poses: Iterable[ImportedPose], splits: Mapping[str, Sequence[str]]
) -> int:
    """Write a file of poses and the ids of each split; return the number of clips.

    All clips have the same V, and either all of them have positions or none has. Layout, for C clips and R =
    sum of M * T rows::

        clip_id    (C,)        UTF-8
        shape      (C, 2)      M and T of each clip
        row_start  (C + 1,)    clip c has the rows row_start[c] .. row_start[c + 1], person by person
        image_size (C, 2)      height and width in pixels, 0 where they are not known
        label      (C,)        -1 where it is not known
        digest     (C,)        of each clip's poses, BLAKE2b-128 in hexadecimal digits
        splits     ()          JSON: {name: [id, ...]}
        keypoints  (R, V, 2)   float32
        scores     (R, V)      float32
        positions  (R, V, 3)   float32; only where there are some
    """
    temporary = partial_path(path)
    try:
        with writing(path), h5py.File(temporary, "w", libver="v110") as file:
            file.attrs["format"] = _FORMAT
            tables = _Tables(file)
            for pose in poses:
                tables.add(pose)
            tables.close(splits)
        commit_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(tables.ids)


class _Tables:
    """The tables of rows, which grow by some thousand rows at a time, and what the index is made of."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._waiting: dict[str, list[np.ndarray]] = {}
        self._rows = 0
        self.ids: list[str] = []
        self._index: list[tuple[int, int, int, int, int]] = []
        self._digests: list[str] = []

    def add(self, pose: ImportedPose) -> None:
        for name in _ROW_TABLES:
            array = getattr(pose, name)
            if array is not None:
                rows = array.reshape(-1, *array.shape[2:]).astype(np.float32, copy=False)
                self._waiting.setdefault(name, []).append(rows)
        self._rows += pose.scores.shape[0] * pose.scores.shape[1]
        self.ids.append(pose.id)
        label = -1 if pose.label is None else pose.label
        self._index.append((*pose.scores.shape[:2], *(pose.image_size or (0, 0)), label))
        self._digests.append(pose.digest)
        if self._rows >= _ROWS_AT_ONCE:
            self._flush()

    def close(self, splits: Mapping[str, Sequence[str]]) -> None:
        self._flush()
        index = np.array(self._index, np.int64).reshape(-1, 5)
        text = h5py.string_dtype("utf-8")
        self._file["clip_id"] = np.array(self.ids, object).astype(text)
        self._file["shape"] = index[:, :2]
        self._file["row_start"] = np.concatenate([[0], np.cumsum(index[:, :2].prod(1))])
        self._file["image_size"], self._file["label"] = index[:, 2:4], index[:, 4]
        self._file["digest"] = np.array(self._digests, object).astype(text)
        self._file["splits"] = json.dumps({name: list(ids) for name, ids in splits.items()})

    def _flush(self) -> None:
        for name, waiting in self._waiting.items():
            rows = np.concatenate(waiting) if waiting else self._file[name][:0]
            if name in self._file:
                table = self._file[name]
                before = len(table)
                table.resize(before + len(rows), axis=0)
                table[before:] = rows
            else:
                self._file.create_dataset(
                    name,
                    data=rows,
                    chunks=(_CHUNK_ROWS, *rows.shape[1:]),
                    maxshape=(None, *rows.shape[1:]),
                    compression="gzip",
                    compression_opts=1,
                    shuffle=True,
                    fletcher32=True,
                )
            waiting.clear()
        self._rows = 0


class ImportedPoses:
    """A file that ``write_imported_poses`` wrote, open for reading.

    ``ids`` are its clips in order, ``digests`` and ``frames`` are by id, ``splits`` the ids of each split;
    ``in_space`` tells whether they have positions.
    Raises ``PoseFileError``, with the file's name, when it is missing, damaged or another kind of file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = h5py.File(path, "r")
            found = self._file.attrs.get("format")
            if found != _FORMAT:
                refuse_newer(found, _FORMAT, path)
                raise PoseFileError(
                    f"{path}: found format {found}, expected {_FORMAT}; give what "
                    "'harcache poses import' wrote"
                )
            self.ids: list[str] = [id.decode() for id in self._file["clip_id"][:]]
            self._shape, self._start = self._file["shape"][:], self._file["row_start"][:]
            self._sizes, self._labels = self._file["image_size"][:], self._file["label"][:]
            digests = [digest.decode() for digest in self._file["digest"][:]]
            self.splits: dict[str, list[str]] = json.loads(self._file["splits"][()])
        except FileNotFoundError as error:
            raise PoseFileError(f"{path} is missing; make it by 'harcache poses import'") from error
        except _UNREADABLE as error:
            raise PoseFileError(f"{path} cannot be read ({error}); {_REMEDY}") from error
        self.digests = dict(zip(self.ids, digests, strict=True))
        self.frames: dict[str, int] = dict(zip(self.ids, self._shape[:, 1].tolist(), strict=True))
        self._numbers = {id: number for number, id in enumerate(self.ids)}
        self.in_space = "positions" in self._file

    def __contains__(self, id: object) -> bool:
        return id in self._numbers

    def leaves_out(self, id: str) -> bool:
        """Return False: it says nothing of clips that it does not have."""
        return False

    def absence(self, id: str) -> str | None:
        """Return why a clip has no poses, None where it has some."""
        return None if id in self else f"{self.path} has no poses of it"

    def image_size(self, id: str) -> tuple[int, int] | None:
        """Return height and width of the picture that a clip's keypoints lie in, None where not known."""
        height, width = self._sizes[self._numbers[id]].tolist()
        return (height, width) if height else None

    def label(self, id: str) -> int | None:
        """Return a clip's label, None where it is not known."""
        label = int(self._labels[self._numbers[id]])
        return None if label < 0 else label

    def read(self, id: str) -> ImportedPose:
        """Read the poses of a clip; a damaged table raises ``PoseFileError``."""
        number = self._numbers[id]
        try:
            keypoints, scores, positions = (self._rows(number, name) for name in _ROW_TABLES)
        except _UNREADABLE as error:
            raise PoseFileError(f"{self.path}: clip '{id}' cannot be read ({error}); {_REMEDY}") from error
        return ImportedPose(id, keypoints, scores, positions, self.image_size(id), self.label(id))

    def _rows(self, number: int, name: str) -> Any:
        if name == "positions" and not self.in_space:
            return None
        rows = self._file[name][self._start[number] : self._start[number + 1]]
        return rows.reshape(*self._shape[number], *rows.shape[1:])

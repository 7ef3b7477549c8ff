"""Boxes and keypoints in HDF5, one file a part, because they are ragged and small.

All clips share a few flat tables with offsets: the same input gives the same bytes, and a clip is one slice.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harcache.cache.errors import CacheError
from harcache.pipeline.base.errors import refuse_newer
from harcache.pipeline.base.files import writing
from harcache.pipeline.base.layers import load

if TYPE_CHECKING:
    import h5py

__all__ = [
    "read_detections",
    "read_joints",
    "read_poses",
    "read_positions",
    "write_detections",
    "write_poses",
]

_FORMAT_VERSION = 1
_CHUNK_ROWS = 4096
_REMEDY = "delete it and run the pipeline again"
_COCO_JOINTS = 17
_POSE_TABLES = ("keypoints", "scores", "positions")


def write_detections(path: Path, detections: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Write the persons found in each frame of each clip.

    ``detections``: clip id to one ``(persons, 5) float32`` array a frame: x1 y1 x2 y2 score, pixels of the
    source frame. Raises ``CacheError`` for other shapes and for clips without frames.

    Layout, for C clips, F frames and N boxes in all::

        clip_id      (C,)     UTF-8
        frame_start  (C + 1,) clip c has the frames frame_start[c] .. frame_start[c + 1]
        box_start    (F + 1,) frame f has the boxes box_start[f] .. box_start[f + 1]
        box          (N, 5)   float32
    """
    boxes = [_checked(box, (None, 5), path, id) for id, frames in detections.items() for box in frames]
    for id, frames in detections.items():
        _require(len(frames) > 0, path, id, "has no frames; expected one array of boxes a frame")
    _write(
        path,
        "detections",
        clip_id=_as_bytes(detections),
        frame_start=_offsets(len(frames) for frames in detections.values()),
        box_start=_offsets(map(len, boxes)),
        box=np.concatenate([np.empty((0, 5), np.float32), *boxes]),
    )


def read_detections(path: Path, clip_id: str) -> list[np.ndarray]:
    """Read what ``write_detections`` wrote: one ``(persons, 5) float32`` array a frame.

    Raises ``CacheError``, with file and clip, when the file is missing, damaged or foreign or lacks the clip.
    """
    with _reading(path, "detections", clip_id) as (file, clip):
        first, last = file["frame_start"][clip : clip + 2]
        starts = file["box_start"][first : last + 1]
        boxes = file["box"][starts[0] : starts[-1]]
        _require(
            len(starts) == last - first + 1 and len(boxes) == starts[-1] - starts[0],
            path,
            clip_id,
            f"has fewer boxes than its index says; {_REMEDY}",
        )
    return np.split(boxes, starts[1:-1] - starts[0])


def write_poses(path: Path, poses: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Write the linked poses of each clip.

    ``poses``: clip id to keypoints ``(M, T, V, 2) float32`` (persons, frames, joints; x before y, pixels of
    the source frame, NaN where nobody is) and scores ``(M, T, V) float32``; M may be 0. Skeletons in space
    have a third array for every clip: positions ``(M, T, V, 3) float32``, metres. V is 17 for COCO's joints
    and the same for all clips. Raises ``CacheError`` for other shapes and for clips without frames.

    Layout, for C clips and R = sum of M * T rows::

        clip_id    (C,)        UTF-8
        shape      (C, 2)      M and T of each clip
        row_start  (C + 1,)    clip c has the rows row_start[c] .. row_start[c + 1], person by person
        keypoints  (R, V, 2)   float32
        scores     (R, V)      float32
        positions  (R, V, 3)   float32; only where they were given
    """
    joints = next((pose[0].shape[-2] for pose in poses.values()), _COCO_JOINTS)
    tails = [(joints, 2), (joints,), (joints, 3)]
    clips = [_checked_pose(pose, tails, path, id) for id, pose in poses.items()]
    arrays = max(map(len, clips), default=2)
    for id, clip in zip(poses, clips, strict=True):
        _require(
            len(clip) == arrays, path, id, "lacks the positions that other clips have; correct its maker"
        )
    tables = [
        np.concatenate([np.empty((0, *tail), np.float32), *(clip[i].reshape(-1, *tail) for clip in clips)])
        for i, tail in enumerate(tails[:arrays])
    ]
    shapes = [clip[0].shape[:2] for clip in clips]
    _write(
        path,
        "poses",
        clip_id=_as_bytes(poses),
        shape=np.array(shapes, np.int64).reshape(-1, 2),
        row_start=_offsets(persons * frames for persons, frames in shapes),
        **dict(zip(_POSE_TABLES, tables, strict=False)),
    )


def read_poses(path: Path, clip_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Read what ``write_poses`` wrote: keypoints ``(M, T, V, 2)`` and scores ``(M, T, V)``, float32.

    Raises ``CacheError``, with file and clip, when the file is missing, damaged or foreign or lacks the clip.
    """
    with _reading(path, "poses", clip_id) as (file, clip):
        return _pose_table(file, "keypoints", clip, path), _pose_table(file, "scores", clip, path)


def read_positions(path: Path, clip_id: str) -> np.ndarray | None:
    """Read the positions ``(M, T, V, 3) float32``, metres, or None where the file has none.

    Raises ``CacheError`` as ``read_poses`` does.
    """
    with _reading(path, "poses", clip_id) as (file, clip):
        return _pose_table(file, "positions", clip, path) if "positions" in file else None


def read_joints(path: Path, clip_id: str) -> tuple[int, bool]:
    """Return the number of joints in a file of poses, and whether it has positions.

    Raises ``CacheError`` as ``read_poses`` does.
    """
    with _reading(path, "poses", clip_id) as (file, _):
        return file["scores"].shape[1], "positions" in file


def _pose_table(file: "h5py.File", name: str, clip: int, path: Path) -> np.ndarray:
    """Return the rows of clip number ``clip``: (M, T, ...)."""
    first, last = file["row_start"][clip : clip + 2]
    persons, frames = file["shape"][clip]
    rows = file[name][first:last]
    _require(
        len(rows) == persons * frames,
        path,
        file["clip_id"][clip].decode(),
        f"has {len(rows)} rows of {name}, expected {persons} persons in {frames} frames; {_REMEDY}",
    )
    return rows.reshape(persons, frames, *rows.shape[1:])


def _write(path: Path, kind: str, **tables: np.ndarray) -> None:
    # From HDF5 1.10's format on, the file's own structure carries checksums too. It is made in memory, since
    # HDF5 crashes the process when the disk is full.
    h5py = load("h5py")
    with h5py.File(path, "w", libver="v110", driver="core", backing_store=False) as file:
        file.attrs["format"] = _format(kind)
        for name, table in tables.items():
            rows = min(max(len(table), 1), _CHUNK_ROWS)
            chunks = (rows, *table.shape[1:])
            maxshape = (None, *table.shape[1:])
            file.create_dataset(
                name, data=table, chunks=chunks, maxshape=maxshape, fletcher32=True, track_times=False
            )
            # Gives the table its place now. Left to the closing of its handle, the place would depend on who
            # still holds the handle: the profiler in Dask workers does for a moment, and the bytes varied.
            file.flush()
        content = file.id.get_file_image()
    with writing(path):
        path.write_bytes(content)


@contextmanager
def _reading(path: Path, kind: str, clip_id: str) -> Iterator[tuple["h5py.File", int]]:
    """Open the file of a clip, find the clip's number, and turn what HDF5 raises into errors with names."""
    # Those who only read stores need not have it.
    h5py = load("h5py")
    try:
        with h5py.File(path, "r") as file:
            found, wanted = file.attrs.get("format"), _format(kind)
            refuse_newer(found, wanted, path)
            _require(found == wanted, path, clip_id, f"found format {found}, expected {wanted}; {_REMEDY}")
            clips = np.flatnonzero(file["clip_id"][:] == clip_id.encode())
            _require(len(clips) == 1, path, clip_id, "is not in this file; run the stage that makes it again")
            yield file, int(clips[0])
    except FileNotFoundError as error:
        raise CacheError(
            f"{path}: no such file for clip '{clip_id}'; run the stage that makes it."
        ) from error
    except (OSError, LookupError, RuntimeError, ValueError, TypeError) as error:
        raise CacheError(f"{path}: clip '{clip_id}' cannot be read ({error}); {_REMEDY}.") from error


def _format(kind: str) -> str:
    return f"harcache.{kind}/{_FORMAT_VERSION}"


def _checked_pose(
    pose: Sequence[np.ndarray], tails: Sequence[tuple[int, ...]], path: Path, clip_id: str
) -> list[np.ndarray]:
    keypoints = _checked(pose[0], (None, None, *tails[0]), path, clip_id)
    _require(keypoints.shape[1] > 0, path, clip_id, "has no frames; expected at least one")
    others = [
        _checked(array, (*keypoints.shape[:2], *tail), path, clip_id)
        for array, tail in zip(pose[1:], tails[1:], strict=False)
    ]
    return [keypoints, *others]


def _checked(values: np.ndarray, shape: tuple[int | None, ...], path: Path, clip_id: str) -> np.ndarray:
    array = np.asarray(values, np.float32)
    fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    _require(fits, path, clip_id, f"has an array of shape {array.shape}, expected {shape}; correct its maker")
    return array


def _require(condition: bool, path: Path, clip_id: str, problem: str) -> None:
    if not condition:
        raise CacheError(f"{path}: clip '{clip_id}' {problem}.")


def _as_bytes(clip_ids: Mapping[str, object]) -> np.ndarray:
    encoded = [clip_id.encode() for clip_id in clip_ids]
    length = max(map(len, encoded), default=1)
    return np.array(encoded, load("h5py").string_dtype("utf-8", length))


def _offsets(lengths: Iterable[int]) -> np.ndarray:
    return np.fromiter(accumulate(lengths, initial=0), np.int64)

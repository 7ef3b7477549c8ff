"""Kinect's skeletons: NTU RGB+D's ``.skeleton`` text and UTD-MHAD's ``.mat``, as poses with places in space.

Both sensors lose people and invent some; what is dropped and joined here is what the datasets' users do.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.folders import find_files
from harcache.pipeline.skeletons.imported import ImportedPose

__all__ = ["KinectPoses", "find_skeletons", "read_missing", "read_skeletons"]

_NTU_JOINTS, _NTU_COLUMNS, _NTU_BODY_VALUES = 25, 12, 10
_NTU_IMAGE = (1080, 1920)
_UTD_JOINTS, _UTD_VARIABLE = 20, "d_skel"
# Some of NTU's bodies are no persons: seen in few frames, or in most frames wider than people are.
_SHORT = 11  # frames
_WIDEST, _MOSTLY = 0.8, 0.69754  # width by height; part of the frames
_MOST = 100_000  # bodies times frames, 240 MB; NTU's largest recordings have some thousands
_NTU_NAME = re.compile(r"S\d{3}C\d{3}P\d{3}R\d{3}A\d{3}")
_ADVICE = "get the file anew or remove it"


class KinectPoses:
    """The skeletons in a folder, by clip id.

    ``digests``: what stands for the state of each clip's file; ``frames`` is empty: no file was read yet.
    Clips that a list of missing skeletons in the folder names have none, unless ``keep_missing``.
    Raises HarcacheError where the folder has no skeletons.
    """

    def __init__(self, folder: Path, keep_missing: bool) -> None:
        self._folder, self._keep_missing = folder, keep_missing
        self._files, self._missing = find_skeletons(folder), read_missing(folder)
        self.frames: Mapping[str, int] = {}

    def __contains__(self, id: object) -> bool:
        return id in self._files

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """What stands for each clip's poses."""
        stats = {id: path.stat() for id, path in self._files.items()}
        return {id: f"{s.st_size} {s.st_mtime_ns} {id in self._missing}" for id, s in stats.items()}

    def leaves_out(self, id: str) -> bool:
        """Return whether a list names the clip's skeletons as missing, unless such clips are kept."""
        return id in self._missing and not self._keep_missing

    def absence(self, id: str) -> str | None:
        """Return why a clip has no poses, None where it has some."""
        if self.leaves_out(id):
            return f"a list in {self._folder} names its skeletons as missing"
        return None if id in self else f"{self._folder} has no skeletons of it"

    def read(self, id: str) -> ImportedPose:
        """Read a clip's persons; HarcacheError as `read_skeletons` raises it."""
        return read_skeletons(self._files[id])


def find_skeletons(folder: Path) -> dict[str, Path]:
    """Return the skeleton files under ``folder`` by clip id; HarcacheError where there are none."""
    paths = [folder / name for name in find_files(folder, (".skeleton", ".mat"))]
    found = {_id_of(path): path for path in paths}
    if not found:
        raise HarcacheError(f"{folder} has no .skeleton or .mat files; give the folder that holds them")
    return found


def _id_of(path: Path) -> str:
    return path.stem.removesuffix("_skeleton")


def read_missing(folder: Path) -> frozenset[str]:
    """Return the clips that the lists ``*missing_skeletons*.txt`` in ``folder`` name."""
    lists = sorted(folder.glob("*missing_skeletons*.txt"))
    return frozenset(name for path in lists for name in _NTU_NAME.findall(path.read_text(errors="replace")))


def read_skeletons(path: Path) -> ImportedPose:
    """Read a recording of NTU RGB+D (25 joints) or of UTD-MHAD (``.mat``, 20 joints, one person).

    Persons come most present first, positions are metres before the sensor. UTD-MHAD's have no keypoints.
    NTU: a joint's score is 1 where it was tracked, 0.5 where it was inferred, else 0. Bodies that are no
    persons are dropped where others remain, and bodies that follow each other are one person.
    Raises HarcacheError, with the line, for a file that is cut off or not of that form.
    """
    return _read_utd(path) if path.suffix == ".mat" else _read_ntu(path)


def _read_ntu(path: Path) -> ImportedPose:
    lines = _Lines(path)
    frames = lines.count("frames")
    if frames == 0:
        raise HarcacheError(f"{path} has no frames; {_ADVICE}")
    if frames > len(lines):
        raise HarcacheError(f"{path} says {frames} frames but has {len(lines)} lines; {_ADVICE}")
    bodies: dict[str, dict[int, np.ndarray]] = {}
    for frame in range(frames):
        for _ in range(lines.count(f"bodies of frame {frame}")):
            # Bodies' numbers have 17 digits, too many for a float.
            body = lines.words(1, _NTU_BODY_VALUES)[0][0]
            count = lines.count("joints")
            if count != _NTU_JOINTS:
                raise lines.error(f"{count} joints, expected {_NTU_JOINTS}")
            values = np.array(lines.values(_NTU_JOINTS, _NTU_COLUMNS), np.float64)
            if bodies.setdefault(body, {}).setdefault(frame, values) is not values:
                raise lines.error(f"body {body} comes twice in frame {frame}")
    lines.end(frames)
    if len(bodies) * frames > _MOST:
        raise HarcacheError(
            f"{path} has {len(bodies)} bodies in {frames} frames, which no sensor sees; {_ADVICE}"
        )
    tracks = [_track(seen, frames) for seen in bodies.values()]
    persons = _joined(_without_noise(sorted(filter(_seen, tracks), key=_presence)))
    joints = np.array(persons).reshape(-1, frames, _NTU_JOINTS, _NTU_COLUMNS)
    return ImportedPose(
        _id_of(path),
        joints[..., 5:7].astype(np.float32),
        np.nan_to_num(joints[..., 11] / 2).astype(np.float32),
        joints[..., :3].astype(np.float32),
        _NTU_IMAGE,
    )


def _read_utd(path: Path) -> ImportedPose:
    # SciPy loads for half a second, which no other source needs.
    from scipy.io import loadmat

    try:
        values = loadmat(path, variable_names=[_UTD_VARIABLE]).get(_UTD_VARIABLE)
    except Exception as error:  # SciPy lets through whatever a damaged file leads to
        raise HarcacheError(f"{path} is no MATLAB file that can be read ({error}); {_ADVICE}") from error
    found = "nothing" if values is None else f"{values.dtype} {values.shape}"
    fits = values is not None and values.dtype.kind == "f" and values.shape[:2] == (_UTD_JOINTS, 3)
    if not fits or values.ndim != 3 or values.shape[2] == 0:
        raise HarcacheError(
            f"{path}: {_UTD_VARIABLE} is {found}; expected float ({_UTD_JOINTS}, 3, frames); {_ADVICE}"
        )
    positions = values.transpose(2, 0, 1)[None].astype(np.float32)
    positions[~np.isfinite(positions).all(-1)] = np.nan
    scores = np.isfinite(positions).all(-1).astype(np.float32)
    return ImportedPose(_id_of(path), np.full((*scores.shape, 2), np.nan, np.float32), scores, positions)


def _track(seen: dict[int, np.ndarray], frames: int) -> np.ndarray:
    """A body over time: (T, 25, 12), NaN where it is not seen; zeros are the sensor's word for that too."""
    track = np.full((frames, _NTU_JOINTS, _NTU_COLUMNS), np.nan)
    for frame, values in seen.items():
        if values[:, :3].any():
            # A joint that has no place on the picture still has one in space.
            values[~np.isfinite(values[:, 5:7]).all(-1), 5:7] = np.nan
            values[~np.isfinite(values[:, :3]).all(-1)] = np.nan
            track[frame] = values
    return track


def _frames_of(track: np.ndarray) -> np.ndarray:
    return np.isfinite(track[..., 0]).any(-1)


def _seen(track: np.ndarray) -> bool:
    return bool(_frames_of(track).any())


def _presence(track: np.ndarray) -> tuple[float, float]:
    """Sort by frames, then by motion, the most of both first."""
    motion = np.nanvar(track[..., :3].reshape(-1, 3), axis=0).sum()
    return -float(_frames_of(track).sum()), -float(motion)


def _without_noise(tracks: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Drop bodies that are no persons, unless none would remain."""
    long = [track for track in tracks if _frames_of(track).sum() > _SHORT] or tracks
    return [track for track in long if not _too_wide(track)] or long


def _too_wide(track: np.ndarray) -> bool:
    there = track[_frames_of(track)]
    width, height = (np.nanmax(there[..., i], 1) - np.nanmin(there[..., i], 1) for i in (0, 1))
    return bool((width > _WIDEST * height).mean() >= _MOSTLY)


def _joined(tracks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Join bodies that are never seen together: the sensor numbers a person anew after losing them."""
    persons: list[np.ndarray] = []
    for track in tracks:
        there = _frames_of(track)
        one = next((person for person in persons if not (_frames_of(person) & there).any()), None)
        if one is None:
            persons.append(track.copy())
        else:
            one[there] = track[there]
    return persons


class _Lines:
    """The lines of a file one after the other, with errors that name file and line."""

    def __init__(self, path: Path) -> None:
        self._path, self._next = path, 0
        try:
            self._lines = path.read_text(encoding="ascii").split("\n")
        except UnicodeDecodeError as error:
            raise HarcacheError(f"{path} is no text ({error.reason}); {_ADVICE}") from error
        except OSError as error:
            raise HarcacheError(f"{path} can't be read ({error.strerror}); check its rights") from error

    def __len__(self) -> int:
        return len(self._lines)

    def error(self, problem: str) -> HarcacheError:
        return HarcacheError(f"{self._path}, line {self._next}: {problem}; {_ADVICE}")

    def count(self, what: str) -> int:
        (text,) = self._take(1)
        if not re.fullmatch(r"\s*\d{1,9}\s*", text):
            raise self.error(f"the number of {what} is {text[:40]!r}")
        return int(text)

    def words(self, lines: int, columns: int) -> list[list[str]]:
        taken = [line.split() for line in self._take(lines)]
        wrong = next((len(line) for line in taken if len(line) != columns), None)
        if wrong is not None:
            raise self.error(f"one of the last {lines} lines has {wrong} values, expected {columns}")
        return taken

    def values(self, lines: int, columns: int) -> list[list[float]]:
        try:
            return [[float(word) for word in line] for line in self.words(lines, columns)]
        except ValueError as error:
            raise self.error(f"in the last {lines} lines is no number ({error})") from None

    def end(self, frames: int) -> None:
        if any(line.strip() for line in self._lines[self._next :]):
            raise self.error(f"it goes on after its {frames} frames")

    def _take(self, count: int) -> list[str]:
        taken = self._lines[self._next : self._next + count]
        self._next += count
        if len(taken) < count:
            raise self.error("it is cut off")
        return taken

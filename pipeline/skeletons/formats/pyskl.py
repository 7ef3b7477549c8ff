"""PYSKL's annotation pickles, which the skeleton networks of the field read and write.

Clip by clip both ways, so that a pickle of any size takes the memory of its list of names.
"""

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import commit_file, partial_path, writing
from harcache.pipeline.base.text import printable, shown
from harcache.pipeline.skeletons.formats.pickles import PickledArray, array_of, read_pickle
from harcache.pipeline.skeletons.formats.registry import PoseFile, Unusable
from harcache.pipeline.skeletons.imported import ImportedPose

__all__ = ["annotation_of", "read", "write", "write_annotations"]

_LONGEST_ID = 255
_MOST_READ = 4  # times the file's size: arrays may stand in several entries, but not in all
_ARRAYS = ("keypoint", "keypoint_score")
_LARGEST_SIDE = 1_000_000  # pixels
_MOST_CLASSES = 100_000  # each class up to the largest label gets a row in the table of classes


def read(path: Path, advance: Callable[[int], None]) -> PoseFile:
    """Open a pickle of {"split": {name: [id]}, "annotations": [entry]}, or of the list alone.

    Raises PoseFileError when it holds anything but arrays and plain containers; nothing in it is run.
    """
    entries, splits, unusable = _parts_of(path, read_pickle(path, advance))
    return PoseFile(len(entries), _poses(path, entries), splits, unusable, "frame_dir")


def _poses(path: Path, entries: Sequence[Any]) -> Iterator[ImportedPose | Unusable]:
    read, most = 0, _MOST_READ * (path.stat().st_size + 2**20)
    for number, entry in enumerate(entries):
        read += _bytes_of(entry)
        if read > most:
            raise HarcacheError(f"{path}: its entries share their arrays, so they are not those of clips")
        try:
            yield _pose(path, entry)
        except HarcacheError as error:
            yield Unusable(_id_of(entry) or f"entry {number}", str(error))


def _bytes_of(entry: Any) -> int:
    """Return the bytes of the arrays that are read for an entry."""
    arrays = [entry.get(name) for name in _ARRAYS] if isinstance(entry, dict) else []
    return sum(array.size for array in arrays if isinstance(array, PickledArray))


def write(path: Path, poses: Iterable[ImportedPose], splits: Mapping[str, Sequence[str]]) -> None:
    """Write poses in PYSKL's form, with the ids of each split."""
    write_annotations(path, map(annotation_of, poses), splits)


def write_annotations(
    out: Path, annotations: Iterable[Mapping[str, Any]], splits: Mapping[str, Sequence[str]]
) -> None:
    """Write {"split": ..., "annotations": [...]} as a pickle of protocol 3, one annotation at a time."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(out)
    try:
        with writing(out), temporary.open("wb") as file:
            _pickle_in_pieces(file, annotations, splits)
        commit_file(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _pickle_in_pieces(
    file: BinaryIO, annotations: Iterable[Mapping[str, Any]], splits: Mapping[str, Sequence[str]]
) -> None:
    """Write what ``pickle.dump`` would of the whole, without holding it.

    Of each piece's own pickle the header and the stop are left out. Its memo begins at 0 again, which does no
    harm, since each piece refers to itself alone.
    """
    file.write(pickle.PROTO + b"\x03" + pickle.EMPTY_DICT + pickle.MARK)
    file.write(_piece("split") + _piece({name: list(ids) for name, ids in splits.items()}))
    file.write(_piece("annotations") + pickle.EMPTY_LIST + pickle.MARK)
    for annotation in annotations:
        file.write(_piece(dict(annotation)))
    file.write(pickle.APPENDS + pickle.SETITEMS + pickle.STOP)


def _piece(value: Any) -> bytes:
    # NumPy 1, which many readers of such files have, knows its own module under the older name alone.
    content = pickle.dumps(value, protocol=3)[2:-1]
    return content.replace(
        b"cnumpy._core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\n_reconstruct\n"
    )


def annotation_of(pose: ImportedPose) -> dict[str, Any]:
    """Return PYSKL's entry of a clip; zeros where nobody is, as is its way."""
    in_space = pose.positions is not None
    points = np.nan_to_num(pose.positions if pose.positions is not None else pose.keypoints)
    size = (
        {} if pose.image_size is None else {"img_shape": pose.image_size, "original_shape": pose.image_size}
    )
    label = {} if pose.label is None else {"label": pose.label}
    scores = {} if in_space else {"keypoint_score": _smallest(pose.scores)}
    return {
        "frame_dir": pose.id,
        **label,
        **size,
        "total_frames": points.shape[1],
        "keypoint": _smallest(points),
        **scores,
    }


def _smallest(values: np.ndarray) -> np.ndarray:
    """Return float32 values as float16, PYSKL's own type, where that loses nothing."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half, values) else values


def _parts_of(source: Path, content: Any) -> tuple[list[Any], dict[str, list[str]], tuple[Unusable, ...]]:
    """Return the entries, the splits, and the splits that are none."""
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not entries:
        raise HarcacheError(
            f"{source} holds no list of annotations; expected {{'split': ..., 'annotations': [...]}}"
        )
    found = content.get("split", {}) if isinstance(content, dict) else {}
    splits: dict[str, list[str]] = {}
    unusable = []
    for name, ids in found.items() if isinstance(found, dict) else [("split", found)]:
        if isinstance(name, str) and isinstance(ids, list) and all(isinstance(id, str) for id in ids):
            splits[name] = ids
        else:
            named = printable(name)[:40] if isinstance(name, str) else shown(name)
            unusable.append(Unusable(f"split {named}", "expected a list of ids"))
    return entries, splits, tuple(unusable)


def _id_of(entry: Any) -> str | None:
    id = entry.get("frame_dir") if isinstance(entry, dict) else None
    fits = isinstance(id, str) and 0 < len(id) <= _LONGEST_ID and id.isprintable()
    return id if fits else None


def _pose(source: Path, entry: Any) -> ImportedPose:
    """Check an entry and return its poses; HarcacheError says what is wrong."""
    id = _id_of(entry)
    if id is None:
        raise HarcacheError("it has no frame_dir that can be an id: expected printable text")
    keypoints = _array(source, entry, "keypoint")
    _require(
        keypoints.ndim == 4
        and keypoints.shape[1] > 0
        and keypoints.shape[2] > 0
        and keypoints.shape[3] in (2, 3),
        f"keypoint is {keypoints.shape}; expected (persons, frames, joints, 2 or 3), at least one frame",
    )
    in_space = keypoints.shape[3] == 3
    total = entry.get("total_frames", keypoints.shape[1])
    _require(
        total == keypoints.shape[1], f"total_frames is {shown(total)}, but keypoint has {keypoints.shape[1]}"
    )
    nobody = ~keypoints.any((2, 3))
    if in_space and "keypoint_score" not in entry:
        scores = np.ones(keypoints.shape[:3], np.float32)
        scores[nobody] = 0
    else:
        scores = _array(source, entry, "keypoint_score")
        _require(
            scores.shape == keypoints.shape[:3],
            f"keypoint_score is {scores.shape}; expected {keypoints.shape[:3]}, as keypoint has",
        )
        nobody &= ~scores.any(2)
    keypoints[nobody] = np.nan
    label = entry.get("label")
    _require(
        label is None or (type(label) is int and 0 <= label < _MOST_CLASSES),
        f"label is no whole number from 0 on, under {_MOST_CLASSES}",
    )
    size = _image_size(entry)
    if in_space:
        flat = np.full((*scores.shape, 2), np.nan, np.float32)
        return ImportedPose(id, flat, scores, keypoints, size, label)
    return ImportedPose(id, keypoints, scores, None, size, label)


def _array(source: Path, entry: Mapping[str, Any], name: str) -> np.ndarray:
    """Return an array of an entry as float32, a copy; HarcacheError when it is not of finite numbers."""
    pickled = entry.get(name)
    if not isinstance(pickled, PickledArray):
        raise HarcacheError(f"{name} is {'missing' if pickled is None else 'no array'}")
    array = array_of(source, pickled)
    _require(array.dtype.kind in "fiu", f"{name} holds {array.dtype}; expected numbers")
    # What is too large for float32 becomes infinite, and is found so.
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    _require(bool(np.isfinite(array).all()), f"{name} holds NaN or infinite values; expected finite ones")
    return array


def _image_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    size = entry.get("img_shape")
    if size is None:
        return None
    fits = (
        isinstance(size, tuple | list)
        and len(size) >= 2
        and all(type(n) is int and 0 < n <= _LARGEST_SIDE for n in size[:2])
    )
    _require(fits, "img_shape is no height and width")
    return size[0], size[1]


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise HarcacheError(problem)

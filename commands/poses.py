"""Poses in and out: PYSKL's annotation pickles, which the skeleton networks of the field read and write.

Clip by clip both ways, so that a pickle of any size takes the memory of its list of names.
"""

import pickle
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from harcache.cache.annotations import read_poses, read_positions
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import commit_file, partial_path, refuse_to_replace_source, writing
from harcache.pipeline.base.progress import progress
from harcache.pipeline.clips import Clip, read_manifest
from harcache.pipeline.skeletons.imported import ImportedPose, write_imported_poses
from harcache.pipeline.skeletons.pickles import PickledArray, array_of, read_pickle
from harcache.pipeline.work.outcomes import Counts, write_failures
from harcache.pipeline.work.parts import Outcome, dataset_lock, read_records
from harcache.stages.shared.units import ended, part_file
from harcache.stages.shared.workspace import Workspace

__all__ = ["annotation_of", "export_poses", "import_poses", "write_annotations"]

_MEGABYTE = 1_000_000
_NAMED = 5  # entries that are named in print; a file lists all
_LONGEST_ID = 255
_MOST_CLASSES = 100_000  # each class up to the largest label gets a row in the table of classes


def import_poses(source: Path, out: Path) -> Counts:
    """Turn a pickle in PYSKL's form into a file for the pose stage's backend "import"; print the counts.

    ``source`` holds {"split": {name: [id]}, "annotations": [entry]}, or the list alone. Entries that can't be
    used are failed in ``out`` with the suffix ``.failures.csv``. Raises HarcacheError when the pickle holds
    anything but arrays and plain containers, or no entry that can be used.
    """
    refuse_to_replace_source(source, out)
    size = source.stat().st_size if source.is_file() else 0
    with progress(size // _MEGABYTE, "poses: read", unit="MB") as bar:
        content = read_pickle(source, bar.advance)
    entries, splits, failed = _parts_of(source, content)
    _require_room(out, size)
    ok = write_imported_poses(out, _usable(source, entries, failed), splits)
    list_of_failed = out.with_suffix(".failures.csv")
    write_failures(list_of_failed, failed)
    print(f"{out}: {ok} ok, {len(failed)} failed of {ok + len(failed)} entries, {len(splits)} splits")
    for outcome in islice(failed, _NAMED):
        print(f"  {outcome.id}: {outcome.reason}")
    if len(failed) > _NAMED:
        print(f"  all are in {list_of_failed}")
    return Counts(ok, 0, len(failed))


def export_poses(workspace: Workspace, out: Path, protocol: str | None = None) -> int:
    """Write the poses of a dataset in PYSKL's form; return the number of clips.

    Labels and splits are those of ``protocol``, or of all protocols where their labels agree; a split is
    called ``<protocol>_<split>``. Skeletons in space are written as such: keypoint (M, T, V, 3), metres.
    Raises HarcacheError where the protocols' labels differ, and for an unknown protocol.
    """
    clips = read_manifest(workspace.manifest)
    with dataset_lock(workspace.data, reading=True):
        parts = {
            outcome.id: part_file(workspace.poses, record.part)
            for record in read_records(workspace.poses)
            for outcome in ended([record])
            if outcome.status == "ok"
        }
        clips = [clip for clip in clips if clip.id in parts]
        if not clips:
            raise HarcacheError(f"{workspace.poses} has no poses of the manifest's clips; run the pose stage")
        protocols = _protocols(clips, protocol)
        splits: dict[str, list[str]] = defaultdict(list)
        for clip in clips:
            for name in protocols:
                if clip.split(name):
                    splits[f"{name}_{clip.split(name)}"].append(clip.id)
        with progress(len(clips), "poses: write") as bar:
            write_annotations(out, _annotations(clips, parts, protocols, bar.advance), splits)
    print(f"{out}: {len(clips)} clips, {len(splits)} splits")
    return len(clips)


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


def _parts_of(source: Path, content: Any) -> tuple[list[Any], dict[str, list[str]], list[Outcome]]:
    """Return the entries, the splits, and the splits that are none."""
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not entries:
        raise HarcacheError(
            f"{source} holds no list of annotations; expected {{'split': ..., 'annotations': [...]}}"
        )
    found = content.get("split", {}) if isinstance(content, dict) else {}
    splits: dict[str, list[str]] = {}
    failed = []
    for name, ids in found.items() if isinstance(found, dict) else [("split", found)]:
        if isinstance(name, str) and isinstance(ids, list) and all(isinstance(id, str) for id in ids):
            splits[name] = ids
        else:
            failed.append(Outcome(f"split {str(name)[:40]}", "failed", "", "expected a list of ids"))
    return entries, splits, failed


def _require_room(out: Path, size: int) -> None:
    """Refuse to begin where the disk is too full: HDF5 ends the process when it fills up."""
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < 2 * size:
        raise HarcacheError(
            f"{out.parent} has {free // _MEGABYTE} MB free, {out.name} may need {2 * size // _MEGABYTE}; "
            "make room"
        )


def _usable(source: Path, entries: Sequence[Any], failed: list[Outcome]) -> Iterator[ImportedPose]:
    """Give the entries that can be used; add the others to ``failed``."""
    seen: set[str] = set()
    kind: tuple[int, bool] | None = None
    with progress(len(entries), "poses: write", unit="entries") as bar:
        for number, entry in enumerate(entries):
            id = _id_of(entry) or f"entry {number}"
            try:
                pose = _pose(source, entry)
                _require(pose.id not in seen, "its frame_dir comes twice; the first is kept")
                this = (pose.scores.shape[2], pose.positions is not None)
                kind = kind or this
                _require(this == kind, f"it has {_kind(this)}, the first entry {_kind(kind)}")
            except HarcacheError as error:
                failed.append(Outcome(id, "failed", "", str(error)))
                bar.advance(1, failed=1)
                continue
            seen.add(pose.id)
            yield pose
            bar.advance(1)
    if not seen:
        first = failed[0]
        raise HarcacheError(f"{source} has no entry that can be used; first {first.id}: {first.reason}")


def _kind(kind: tuple[int, bool]) -> str:
    return f"{kind[0]} joints in {'space' if kind[1] else 'the picture'}"


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
        total == keypoints.shape[1], f"total_frames is {total!s:.20}, but keypoint has {keypoints.shape[1]}"
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
        isinstance(size, tuple | list) and len(size) >= 2 and all(type(n) is int and n > 0 for n in size[:2])
    )
    _require(fits, "img_shape is no height and width")
    return size[0], size[1]


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise HarcacheError(problem)


def _protocols(clips: Sequence[Clip], protocol: str | None) -> list[str]:
    """Return the protocols to write; the first one's labels are those of all."""
    known = sorted({name for clip in clips for name, _ in (*clip.labels, *clip.splits)})
    if protocol is not None:
        if protocol not in known:
            raise HarcacheError(f"no clip has the protocol '{protocol}'; known: {', '.join(known)}")
        return [protocol]
    for clip in clips:
        if len({label for _, label in clip.labels}) > 1:
            raise HarcacheError(
                f"clip '{clip.id}' has other labels in other protocols; choose one by --protocol: "
                + ", ".join(known)
            )
    return known


def _annotations(
    clips: Sequence[Clip],
    parts: Mapping[str, Path],
    protocols: Sequence[str],
    advance: Callable[[int], None],
) -> Iterator[dict[str, Any]]:
    for clip in clips:
        yield annotation_of(_pose_of(clip, parts[clip.id], protocols))
        advance(1)


def _pose_of(clip: Clip, part: Path, protocols: Sequence[str]) -> ImportedPose:
    keypoints, scores = read_poses(part, clip.id)
    label = next((label for name, label in clip.labels if name in protocols), None)
    positions = read_positions(part, clip.id)
    return ImportedPose(clip.id, keypoints, scores, positions, (clip.height, clip.width), label)


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

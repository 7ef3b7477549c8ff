"""Poses of other programs become the one file that the pose stage reads, clip by clip."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.progress import progress
from harcache.pipeline.skeletons.formats.registry import PoseFile, Unusable, read_pose_file
from harcache.pipeline.skeletons.imported import ImportedPose, write_imported_poses

__all__ = ["Imported", "import_pose_file"]

_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of a file: how many clips and splits, and what could not be used."""

    clips: int
    splits: int
    unusable: tuple[Unusable, ...]


def import_pose_file(source: Path, out: Path, format: str) -> Imported:
    """Turn the file of poses ``source`` into ``out``, as `write_imported_poses` writes it.

    Raises HarcacheError for a file that is not of the format, one without an entry that can be used, and
    where the disk is too full.
    """
    size = source.stat().st_size if source.is_file() else 0
    with progress(size // _MEGABYTE, "poses: read", unit="MB") as bar:
        found = read_pose_file(format, source, bar.advance)
    _require_room(out, size)
    unusable = list(found.unusable)
    clips = write_imported_poses(out, _usable(source, found, unusable), found.splits)
    return Imported(clips, len(found.splits), tuple(unusable))


def _require_room(out: Path, size: int) -> None:
    """Refuse to begin where the disk is too full: HDF5 ends the process when it fills up."""
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < 2 * size:
        raise HarcacheError(
            f"{out.parent} has {free // _MEGABYTE} MB free, {out.name} may need {2 * size // _MEGABYTE}; "
            "make room"
        )


def _usable(source: Path, found: PoseFile, unusable: list[Unusable]) -> Iterator[ImportedPose]:
    """Give the poses that can be used; add the others to ``unusable``."""
    seen: set[str] = set()
    kind: tuple[int, bool] | None = None
    with progress(found.entries, "poses: write", unit="entries") as bar:
        for pose in found.poses:
            if isinstance(pose, ImportedPose):
                this = (pose.scores.shape[2], pose.positions is not None)
                kind = kind or this
                problem = _problem(pose.id in seen, this, kind, found.id_name)
                if problem is None:
                    seen.add(pose.id)
                    yield pose
                    bar.advance(1)
                    continue
                pose = Unusable(pose.id, problem)
            unusable.append(pose)
            bar.advance(1, failed=1)
    if not seen:
        first = unusable[0]
        raise HarcacheError(f"{source} has no entry that can be used; first {first.name}: {first.reason}")


def _problem(seen: bool, this: tuple[int, bool], kind: tuple[int, bool], id_name: str) -> str | None:
    if seen:
        return f"its {id_name} comes twice; the first is kept"
    return None if this == kind else f"it has {_kind(this)}, the first entry {_kind(kind)}"


def _kind(kind: tuple[int, bool]) -> str:
    return f"{kind[0]} joints in {'space' if kind[1] else 'the picture'}"

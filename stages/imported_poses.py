"""Poses that are there already, in imported files or as Kinect's skeletons, instead of those of a network.

A clip finds its poses by its id; one that has none is skipped, since most collections of poses have gaps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from cache.annotations import write_detections, write_poses
from cache.imported_poses import ImportedPoses
from pipeline.clips import Clip, fingerprint, read_manifest
from pipeline.engine import Engine, Report
from pipeline.errors import HarcacheError
from pipeline.kinect import find_skeletons, read_missing, read_skeletons
from pipeline.outcomes import Counts
from pipeline.params import ImportedPoseParams, KinectPoseParams
from pipeline.plan import Unit, Wanted
from stages.building import (
    Parts,
    SkipError,
    Timer,
    build_parts,
    build_table_part,
    ended,
    finish,
    inputs_from,
)
from stages.workspace import Workspace

__all__ = ["Context", "process", "process_without_boxes", "run", "run_without_detector"]

# Videos and poses of the same recording may differ by some frames at the end, as NTU's often do.
_FRAMES_OFF = 5
_BroughtAlong = ImportedPoseParams | KinectPoseParams


@dataclass(frozen=True)
class Context:
    """What a unit needs beside its clips; ``token`` stands for the state of the poses' source."""

    folder: Path
    params: _BroughtAlong
    token: str


def run(params: _BroughtAlong, workspace: Workspace, engine: Engine) -> Counts:
    """Take the poses of every clip that the detect stage did not fail on."""
    clips = read_manifest(workspace.manifest)
    inputs = inputs_from(workspace.detections, clips)
    there = [clip for clip in clips if clip.id in inputs.fingerprints]
    states = _states(params, there)
    # Where the poses lie is no part of what they are.
    own = fingerprint("pose", replace(params, source="").fingerprint)
    wanted = [
        Wanted(clip, fingerprint(own, clip.frames, clip.height, clip.width, states[clip.id]))
        for clip in there
    ]
    context = Context(workspace.poses, params, fingerprint(sorted(states.items())))
    parts = Parts("pose", workspace.poses, workspace.poses, wanted)
    records = build_parts(parts, process, context, engine, workspace.retry_failed)
    return finish("pose", workspace, [*ended(records), *inputs.skipped])


def process(unit: Unit, context: Context) -> Report:
    """Make one part: the poses of its clips."""
    timer = Timer()
    return build_table_part(
        context.folder, unit, lambda clip: _poses(clip, context, timer), write_poses, timer
    )


def run_without_detector(workspace: Workspace, engine: Engine) -> Counts:
    """Give every clip empty boxes, without opening a video."""
    clips = read_manifest(workspace.manifest)
    wanted = [Wanted(clip, fingerprint("detect", "none", clip.frames)) for clip in clips]
    parts = Parts("detect", workspace.detections, workspace.detections, wanted)
    records = build_parts(parts, process_without_boxes, workspace.detections, engine, workspace.retry_failed)
    return finish("detect", workspace, ended(records))


def process_without_boxes(unit: Unit, folder: Path) -> Report:
    """Make one part of clips without boxes."""
    empty = np.empty((0, 5), np.float32)
    return build_table_part(folder, unit, lambda clip: [empty] * clip.frames, write_detections, Timer())


def _states(params: _BroughtAlong, clips: Sequence[Clip]) -> dict[str, str]:
    """Return what stands for the poses of each clip; the empty text for a clip that has none."""
    if isinstance(params, ImportedPoseParams):
        digests: Mapping[str, str] = ImportedPoses(Path(params.source)).digests
        return {clip.id: digests.get(clip.id, "") for clip in clips}
    files, missing = find_skeletons(Path(params.source)), read_missing(Path(params.source))
    return {clip.id: _state(files.get(clip.id)) + " missing" * (clip.id in missing) for clip in clips}


def _state(path: Path | None) -> str:
    if path is None:
        return ""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _poses(clip: Clip, context: Context, timer: Timer) -> Sequence[np.ndarray]:
    """Return keypoints (M, T, V, 2), scores (M, T, V) and, of skeletons in space, positions (M, T, V, 3)."""
    with timer("read"):
        if isinstance(context.params, ImportedPoseParams):
            found = _imported(clip, context.params, context.token)
        else:
            found = _kinect(clip, context.params, context.token)
        keypoints, scores, positions, image_size = found
    if image_size and image_size != (clip.height, clip.width):
        scale = np.array([clip.width / image_size[1], clip.height / image_size[0]], np.float32)
        keypoints = keypoints * scale
    arrays = [keypoints, scores] if positions is None else [keypoints, scores, positions]
    kept = _most_present(scores, context.params.max_persons)
    return [_fitted(array[kept], clip, np.nan if array.ndim == 4 else 0) for array in arrays]


_Found = tuple[np.ndarray, np.ndarray, np.ndarray | None, tuple[int, int] | None]


def _imported(clip: Clip, params: ImportedPoseParams, token: str) -> _Found:
    source = _opened(Path(params.source), token)
    if clip.id not in source.frames:
        raise SkipError(f"{source.path} has no poses of it")
    pose = source.read(clip.id)
    return pose.keypoints, pose.scores, pose.positions, pose.image_size


def _kinect(clip: Clip, params: KinectPoseParams, token: str) -> _Found:
    folder = Path(params.source)
    if clip.id in _missing(folder, token) and not params.keep_missing:
        raise SkipError(f"a list in {folder} names its skeletons as missing")
    path = _skeletons(folder, token).get(clip.id)
    if path is None:
        raise SkipError(f"{folder} has no skeletons of it")
    found = read_skeletons(path)
    return found.keypoints, found.scores, found.positions, found.image_size


def _most_present(scores: np.ndarray, persons: int) -> np.ndarray:
    """Return the rows of the persons seen in most frames, in their order."""
    seen = (scores > 0).any(-1).sum(-1)
    return np.sort(np.argsort(-seen, kind="stable")[:persons])


def _fitted(values: np.ndarray, clip: Clip, nobody: float) -> np.ndarray:
    """Cut (M, T, ...) to the clip's frames, or fill it up; HarcacheError when that are too many."""
    off = clip.frames - values.shape[1]
    if abs(off) > _FRAMES_OFF:
        raise HarcacheError(
            f"its poses have {values.shape[1]} frames, the video {clip.frames}: expected at most "
            f"{_FRAMES_OFF} frames more or less; check that they belong together"
        )
    filling = np.full((len(values), max(off, 0), *values.shape[2:]), nobody, values.dtype)
    return np.concatenate([values[:, : clip.frames], filling], axis=1)


# Read once a process and state of the source.
@lru_cache(maxsize=1)
def _opened(path: Path, token: str) -> ImportedPoses:
    return ImportedPoses(path)


@lru_cache(maxsize=1)
def _skeletons(folder: Path, token: str) -> Mapping[str, Path]:
    return find_skeletons(folder)


@lru_cache(maxsize=1)
def _missing(folder: Path, token: str) -> frozenset[str]:
    return read_missing(folder)

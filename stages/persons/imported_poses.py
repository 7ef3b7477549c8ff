"""Poses that are there already, in imported files or as Kinect's skeletons, instead of those of a network.

A clip finds its poses by any of its names, see `stages.persons.names`; one without is skipped and counted.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from harcache.cache.annotations import write_poses
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.base.progress import notice
from harcache.pipeline.clips import Clip, read_manifest
from harcache.pipeline.params import ImportedPoseParams, KinectPoseParams
from harcache.pipeline.skeletons.formats.kinect import KinectPoses
from harcache.pipeline.skeletons.imported import ImportedPose, ImportedPoses
from harcache.pipeline.skeletons.source import PoseSource
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.outcomes import Counts
from harcache.pipeline.work.plan import Unit
from harcache.stages.persons.names import ambiguous_names, name_in, names_of
from harcache.stages.persons.slots import SLOT_RULES, Placement, place_persons
from harcache.stages.shared.rates import Timer
from harcache.stages.shared.units import (
    Parts,
    Rules,
    SkipError,
    Unasked,
    all_outcomes,
    build_parts,
    build_table_part,
    finish_stage,
    inputs_from,
)
from harcache.stages.shared.workspace import Workspace

__all__ = ["Context", "process", "run"]

# Videos and poses of the same recording may differ by some frames at the end, as NTU's often do.
_FRAMES_OFF = 5
_Params = ImportedPoseParams | KinectPoseParams


@dataclass(frozen=True)
class Context:
    """What a unit needs beside its clips.

    ``token`` stands for the state of the poses' source, ``ambiguous`` are names that several clips have.
    """

    folder: Path
    params: _Params
    token: str
    ambiguous: frozenset[str]


def run(params: _Params, workspace: Workspace, engine: Engine) -> Counts:
    """Take the poses of every clip that the detect stage did not fail on."""
    clips = read_manifest(workspace.manifest)
    inputs = inputs_from(workspace.detections, clips)
    there = [clip for clip in clips if clip.id in inputs.fingerprints]
    ambiguous = ambiguous_names(clips)
    source = _open(params)
    names = {clip.id: name_in(source, clip, ambiguous) for clip in there}
    _tell_of_frames(source, there, names)
    _tell_of_others(params.source, source, names)
    states = {id: source.digests.get(name or "", "") for id, name in names.items()}
    own = fingerprint("pose", params.fingerprint)
    wanted = [
        Rules.wanted(
            clip, fingerprint(own, clip.frames, clip.height, clip.width, states[clip.id]), SLOT_RULES
        )
        for clip in there
    ]
    context = Context(workspace.poses, params, fingerprint(sorted(states.items())), ambiguous)
    parts = Parts("pose", workspace.poses, workspace.poses, wanted, rules=SLOT_RULES)
    records = build_parts(parts, process, context, engine, workspace.retry_failed)
    lacking = [clip.id for clip in there if not (names[clip.id] or _listed(source, clip, ambiguous))]
    unasked = Unasked(lacking, params.max_skipped, _both_sides(params.source, source, there))
    return finish_stage("pose", workspace, [*all_outcomes(records), *inputs.skipped], unasked=unasked)


def process(unit: Unit, context: Context) -> Report:
    """Make one part: the poses of its clips."""
    timer = Timer()
    placed: dict[str, Placement] = {}

    def work(clip: Clip) -> Sequence[np.ndarray]:
        arrays, placed[clip.id] = _poses(clip, context, timer)
        return arrays

    rules = Rules(SLOT_RULES, lambda id: placed[id].shared, lambda id: placed[id].dropped)
    return build_table_part(context.folder, unit, work, write_poses, timer, rules)


def _tell_of_frames(poses: PoseSource, clips: Sequence[Clip], names: Mapping[str, str | None]) -> None:
    """Print how many clips get poses that are cut or filled up to their frames."""
    frames = {clip.id: poses.frames.get(names[clip.id] or "") for clip in clips}
    other = [c.id for c in clips if (n := frames[c.id]) and 0 < abs(n - c.frames) <= _FRAMES_OFF]
    if other:
        notice(
            f"pose: the poses of {len(other)} clips, first '{other[0]}', have up to {_FRAMES_OFF} frames "
            "more or less than their videos: cut, or NaN at the end"
        )


def _tell_of_others(path: str, poses: PoseSource, names: Mapping[str, str | None]) -> None:
    """Print how many poses are of no clip."""
    used = {*names.values()}
    others = [id for id in poses.digests if id not in used]
    if others:
        notice(f"pose: {path} has poses of {len(others)} more, first '{others[0]}', which are not used")


def _listed(source: PoseSource, clip: Clip, ambiguous: Container[str]) -> str | None:
    """Return the name by which the source itself says that the clip is to be skipped."""
    return next((name for name in names_of(clip, ambiguous) if source.leaves_out(name)), None)


def _both_sides(path: str, source: PoseSource, clips: Sequence[Clip]) -> str:
    """Show what clips are called on both sides."""
    theirs = ", ".join(f"'{id}'" for id in islice(source.digests, 2))
    ours = ", ".join(f"'{clip.id}' ({clip.video})" for clip in clips[:2])
    return f"{path} has poses of {theirs or 'nobody'}; the clips are {ours or 'none'}."


def _poses(clip: Clip, context: Context, timer: Timer) -> tuple[Sequence[np.ndarray], Placement]:
    """Return keypoints (M, T, V, 2), scores (M, T, V) and, of skeletons in space, positions (M, T, V, 3)."""
    with timer("read"):
        pose = _read(clip, context)
    keypoints, image_size = pose.keypoints, pose.image_size
    if image_size and image_size != (clip.height, clip.width):
        scale = np.array([clip.width / image_size[1], clip.height / image_size[0]], np.float32)
        keypoints = keypoints * scale
    arrays = [keypoints, pose.scores, *([] if pose.positions is None else [pose.positions])]
    placed = place_persons(np.any(pose.scores > 0, axis=-1), clip.frames, context.params.max_persons)
    kept = [placed.take(array) for array in arrays]
    return [_fitted(array, clip, np.nan if array.ndim == 4 else 0) for array in kept], placed


def _read(clip: Clip, context: Context) -> ImportedPose:
    source = _opened(context.params, context.token)
    name = name_in(source, clip, context.ambiguous) or _listed(source, clip, context.ambiguous) or clip.id
    absence = source.absence(name)
    if absence is not None:
        raise SkipError(absence)
    return source.read(name)


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


def _open(params: _Params) -> PoseSource:
    source = Path(params.source)
    if isinstance(params, ImportedPoseParams):
        return ImportedPoses(source)
    return KinectPoses(source, params.keep_missing)


@lru_cache(maxsize=1)
def _opened(params: _Params, token: str) -> PoseSource:
    # Read once a process and state of the source.
    return _open(params)

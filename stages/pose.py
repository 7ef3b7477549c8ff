"""Pose: the keypoints of the persons who matter in each clip, linked over time, in HDF5 parts.

Persons are linked by their boxes before any pose is estimated, so the network sees only those that are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cache.annotations import read_detections, write_poses
from models.pose_estimators import PoseEstimator, load_pose_estimator
from models.weights import find_config, find_weights
from pipeline.clips import Clip, fingerprint, read_manifest
from pipeline.engine import Engine, Report
from pipeline.files import file_digest
from pipeline.outcomes import Counts
from pipeline.params import DatasetParams, PoseParams
from pipeline.plan import Unit, Wanted
from pipeline.video import read_frames
from stages import imported_poses
from stages.building import (
    Parts,
    Timer,
    batches,
    build_parts,
    build_table_part,
    ended,
    finish,
    inputs_from,
    parts_of,
)
from stages.tracking import link_persons
from stages.workspace import Workspace, choose_device

__all__ = ["Context", "estimate_poses", "linked_poses", "process", "rows_of", "run"]

_BATCH = 32  # frames
_JOINTS = 17


@dataclass(frozen=True)
class Context:
    """What a unit needs beside its clips; ``token`` stands for the state of the detections."""

    folder: Path
    detections: Path
    token: str
    videos: Path
    params: PoseParams
    weights_dir: Path | None
    device: str


def run(params: DatasetParams, workspace: Workspace, engine: Engine) -> Counts:
    """Estimate the poses of every clip whose persons were detected, or take those that are there already."""
    if not isinstance(params.pose, PoseParams):
        return imported_poses.run(params.pose, workspace, engine)
    clips = read_manifest(workspace.manifest)
    # Fetched here once, before many workers do; other weights of the same name make other poses.
    sources = [find_weights(params.pose.weights, workspace.weights_dir)]
    if params.pose.backend == "mmpose":
        sources.append(find_config(params.pose.config))
    own = fingerprint("pose", params.pose.fingerprint, [file_digest(source) for source in sources])
    inputs = inputs_from(workspace.detections, clips)
    wanted = [
        Wanted(clip, fingerprint(own, inputs.fingerprints[clip.id]))
        for clip in clips
        if clip.id in inputs.fingerprints
    ]
    context = Context(
        workspace.poses,
        workspace.detections,
        inputs.token,
        workspace.videos,
        params.pose,
        workspace.weights_dir,
        workspace.device,
    )
    parts = Parts("pose", workspace.poses, workspace.poses, wanted)
    records = build_parts(parts, process, context, engine, workspace.retry_failed)
    return finish("pose", workspace, [*ended(records), *inputs.skipped])


def process(unit: Unit, context: Context) -> Report:
    """Make one part: the poses of its clips."""
    estimator, timer = _estimator(context), Timer()
    return build_table_part(
        context.folder, unit, lambda clip: _estimate(clip, context, estimator, timer), write_poses, timer
    )


def rows_of(links: np.ndarray) -> list[np.ndarray]:
    """Return the rows of the boxes in each frame that belong to persons, of `link_persons`' (M, T)."""
    return [column[column >= 0] for column in links.T]


def estimate_poses(
    frames: Iterator[np.ndarray],
    boxes: Sequence[np.ndarray],
    rows: Sequence[np.ndarray],
    estimator: PoseEstimator,
    timer: Timer,
) -> list[np.ndarray]:
    """Return the poses of each frame's boxes, (n, 17, 3) float32: x y in pixels of the frame, and score.

    ``frames`` are (H, W, 3) uint8 RGB, ``boxes`` each one's (n, 4 or more); only the boxes in ``rows`` are
    estimated, the others are NaN with the score 0. ``timer`` counts the network's time; a frame is not kept
    longer than its batch.
    """
    poses: list[np.ndarray] = []
    for batch in batches(frames, _BATCH):
        part = slice(len(poses), len(poses) + len(batch))
        chosen = [found[wanted] for found, wanted in zip(boxes[part], rows[part], strict=True)]
        with timer("network"):
            estimated = estimator.estimate(batch, chosen)
        for found, wanted, pose in zip(boxes[part], rows[part], estimated, strict=True):
            poses.append(np.tile(np.array([np.nan, np.nan, 0], np.float32), (len(found), _JOINTS, 1)))
            poses[-1][wanted] = pose
    return poses


def linked_poses(links: np.ndarray, poses: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return keypoints (M, T, 17, 2) and scores (M, T, 17), float32, of linked persons.

    ``links`` is `link_persons`' (M, T), ``poses`` are each frame's (n, 17, 3). Where a person is not seen,
    keypoints are NaN and scores 0.
    """
    keypoints = np.full((*links.shape, _JOINTS, 2), np.nan, np.float32)
    scores = np.zeros((*links.shape, _JOINTS), np.float32)
    for m, t in np.argwhere(links >= 0):
        pose = poses[t][links[m, t]]
        keypoints[m, t], scores[m, t] = pose[:, :2], pose[:, 2]
    return keypoints, scores


def _estimate(
    clip: Clip, context: Context, estimator: PoseEstimator, timer: Timer
) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (M, T, 17, 2) and scores (M, T, 17) of the clip's persons."""
    boxes = read_detections(parts_of(context.detections, context.token)[clip.id], clip.id)
    links = link_persons(boxes, context.params.max_persons)
    if not len(links):
        return linked_poses(links, [])
    frames = timer.iterate("decode", read_frames(context.videos / clip.video, clip.start, clip.end))
    return linked_poses(links, estimate_poses(frames, boxes, rows_of(links), estimator, timer))


@lru_cache(maxsize=1)
def _estimator(context: Context) -> PoseEstimator:
    # One network a process: loading it costs more than a unit's work.
    return load_pose_estimator(context.params, context.weights_dir, choose_device(context.device))

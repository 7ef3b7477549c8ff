"""Pose: the keypoints of the persons who matter in each clip, linked over time, in HDF5 parts.

Persons are linked by their boxes before any pose is estimated, so the network sees only those that are kept.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from harcache.cache.annotations import read_detections, read_poses, write_poses
from harcache.models.estimators.registry import files_of_estimator
from harcache.models.pretrained.network import Network
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import file_digest
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.clips import Clip, read_manifest
from harcache.pipeline.params import DatasetParams, PoseParams
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.outcomes import Counts
from harcache.pipeline.work.parts import read_record, record_path, verify_files
from harcache.pipeline.work.plan import Unit
from harcache.stages.persons import imported_poses
from harcache.stages.persons.extraction import Context, extract_part, extract_video
from harcache.stages.persons.slots import SLOT_RULES
from harcache.stages.persons.tracking import LINKING, Links, link_boxes
from harcache.stages.shared.rates import Timer
from harcache.stages.shared.units import (
    Parts,
    Rules,
    all_outcomes,
    build_parts,
    finish_stage,
    inputs_from,
    part_file,
    parts_of,
)
from harcache.stages.shared.workspace import Workspace

__all__ = ["estimate_poses", "linked_poses", "process", "rows_of", "run"]

_JOINTS = 17


def run(params: DatasetParams, workspace: Workspace, engine: Engine) -> Counts:
    """Estimate the poses of every clip whose persons were detected, or take those that are there already."""
    if not isinstance(params.pose, PoseParams):
        return imported_poses.run(params.pose, workspace, engine)
    clips = read_manifest(workspace.manifest)
    # Fetched here once, before many workers do; other weights of the same name make other poses.
    files = files_of_estimator(params.pose, workspace.weights_dir)
    own = fingerprint("pose", LINKING, params.pose.fingerprint, [file_digest(file) for file in files])
    inputs = inputs_from(workspace.detections, clips)
    wanted = [
        Rules.wanted(clip, fingerprint(own, inputs.fingerprints[clip.id]), SLOT_RULES)
        for clip in clips
        if clip.id in inputs.fingerprints
    ]
    context = Context(
        workspace.poses,
        workspace.videos,
        params.pose,
        workspace.weights_dir,
        workspace.device,
        own,
        workspace.detections,
        inputs.token,
    )
    parts = Parts("pose", workspace.poses, workspace.poses, wanted, rules=SLOT_RULES)
    records = build_parts(parts, process, context, engine, workspace.retry_failed)
    return finish_stage("pose", workspace, [*all_outcomes(records), *inputs.skipped])


def process(unit: Unit, context: Context) -> Report:
    """Make one part: the poses of its clips; where an earlier version made it, those that hold are kept."""
    persons: dict[str, tuple[list[np.ndarray], Links]] = {}
    before = _made_before(unit, context.folder)

    def holds(clip_id: str) -> bool:
        return clip_id in before and not persons[clip_id][1].shared

    def wanted(clip: Clip) -> list[np.ndarray | None]:
        boxes = read_detections(parts_of(context.detections, context.token)[clip.id], clip.id)
        if len(boxes) != clip.frames:
            raise HarcacheError(
                f"its boxes are of {len(boxes)} frames, the manifest has {clip.frames}; run the stage detect "
                "again"
            )
        links = link_boxes(boxes, context.params.max_persons)
        persons[clip.id] = boxes, links
        return [None] * len(boxes) if holds(clip.id) else _chosen(boxes, rows_of(links.rows))

    def assemble(clip: Clip, found: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if holds(clip.id):
            return read_poses(part_file(context.folder, unit.part), clip.id)
        boxes, links = persons[clip.id]
        return linked_poses(links.rows, _each_box(boxes, rows_of(links.rows), found))

    rules = Rules(SLOT_RULES, lambda id: persons[id][1].shared, lambda id: persons[id][1].dropped)
    return extract_part(unit, context, wanted, assemble, write_poses, rules)


def _made_before(unit: Unit, folder: Path) -> frozenset[str]:
    """Return the clips whose poses an earlier version made from the same inputs, as far as they are whole."""
    path = record_path(folder, unit.part)
    if not path.exists():
        return frozenset()
    record = read_record(path)
    if record.rules == SLOT_RULES or not verify_files(folder, record, checksums=True):
        return frozenset()
    wanted = {clip.id: inputs for clip, inputs in zip(unit.clips, unit.fingerprints, strict=True)}
    return frozenset(
        outcome.id
        for outcome in record.outcomes
        if outcome.status == "ok" and wanted.get(outcome.id) == outcome.fingerprint
    )


def rows_of(links: np.ndarray) -> list[np.ndarray]:
    """Return the rows of the boxes in each frame that belong to persons, of `link_persons`' (M, T)."""
    return [column[column >= 0] for column in links.T]


def estimate_poses(
    frames: Iterable[np.ndarray],
    boxes: Sequence[np.ndarray],
    rows: Sequence[np.ndarray],
    estimator: Network,
    timer: Timer,
) -> list[np.ndarray]:
    """Return the poses of each frame's boxes, (n, 17, 3) float32: x y in pixels of the frame, and score.

    ``frames`` are (H, W, 3) uint8 RGB, ``boxes`` each one's (n, 4 or more); only the boxes in ``rows`` are
    estimated, the others are NaN with the score 0. ``timer`` counts the network's time; only a few batches of
    frames are kept at a time.
    """
    chosen = zip(frames, _chosen(boxes, rows), strict=True)
    found = extract_video(estimator, ((frame, box) for frame, box in chosen if box is not None), timer)
    return _each_box(boxes, rows, found)


def _chosen(boxes: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> list[np.ndarray | None]:
    """The boxes in ``rows``; None where there are none, so that the network need not look."""
    return [found[wanted] if len(wanted) else None for found, wanted in zip(boxes, rows, strict=True)]


def _each_box(
    boxes: Sequence[np.ndarray], rows: Sequence[np.ndarray], found: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Give every box of every frame its pose; ``found`` has those in ``rows``, if a frame has any."""
    estimated = iter(found)
    poses = []
    for those, wanted in zip(boxes, rows, strict=True):
        poses.append(np.tile(np.array([np.nan, np.nan, 0], np.float32), (len(those), _JOINTS, 1)))
        if len(wanted):
            poses[-1][wanted] = next(estimated)
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

"""Detect: the persons of every frame, as boxes in HDF5 parts.

Frames are decoded once here and once more for pose: keeping them between would cost a hundred times the disk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cache.annotations import write_detections
from models.detectors import Detector, load_detector
from models.weights import find_weights
from pipeline.clips import Clip, fingerprint, read_manifest
from pipeline.engine import Engine, Report
from pipeline.files import file_digest
from pipeline.outcomes import Counts
from pipeline.params import DatasetParams, DetectParams, NoDetectParams
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
)
from stages.workspace import Workspace, choose_device

__all__ = ["Context", "find_persons", "process", "run"]

_BATCH = 32  # frames


@dataclass(frozen=True)
class Context:
    """What a unit needs beside its clips."""

    folder: Path
    videos: Path
    params: DetectParams
    weights_dir: Path | None
    device: str


def run(params: DatasetParams, workspace: Workspace, engine: Engine) -> Counts:
    """Find the persons in every clip of the manifest."""
    if isinstance(params.detect, NoDetectParams):
        return imported_poses.run_without_detector(workspace, engine)
    clips = read_manifest(workspace.manifest)
    # Fetched here once, before many workers do; other weights of the same name make other boxes.
    weights = file_digest(find_weights(params.detect.weights, workspace.weights_dir))
    own = fingerprint("detect", params.detect.fingerprint, weights)
    wanted = [Wanted(clip, fingerprint(own, clip.fingerprint)) for clip in clips]
    context = Context(
        workspace.detections, workspace.videos, params.detect, workspace.weights_dir, workspace.device
    )
    parts = Parts("detect", workspace.detections, workspace.detections, wanted)
    records = build_parts(parts, process, context, engine, workspace.retry_failed)
    return finish("detect", workspace, ended(records))


def process(unit: Unit, context: Context) -> Report:
    """Make one part: the boxes of its clips."""
    detector, timer = _detector(context), Timer()
    return build_table_part(
        context.folder, unit, lambda clip: _detect(clip, context, detector, timer), write_detections, timer
    )


def find_persons(frames: Iterator[np.ndarray], detector: Detector, timer: Timer) -> list[np.ndarray]:
    """Return the boxes of each of the (H, W, 3) uint8 RGB frames, as `Detector.detect` gives them.

    ``timer`` counts the network's time; a frame is not kept longer than its batch.
    """
    boxes: list[np.ndarray] = []
    for batch in batches(frames, _BATCH):
        with timer("network"):
            boxes += detector.detect(batch)
    return boxes


def _detect(clip: Clip, context: Context, detector: Detector, timer: Timer) -> list[np.ndarray]:
    frames = timer.iterate("decode", read_frames(context.videos / clip.video, clip.start, clip.end))
    return find_persons(frames, detector, timer)


@lru_cache(maxsize=1)
def _detector(context: Context) -> Detector:
    # One network a process: loading it costs more than a unit's work.
    return load_detector(context.params, context.weights_dir, choose_device(context.device))

"""Detect: the persons of every frame, as boxes in HDF5 parts.

The network looks at whole frames, many clips' in a batch; what it found is a clip's alone.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from harcache.cache.annotations import write_detections
from harcache.models.pretrained.network import Network
from harcache.models.pretrained.weight_files import find_weights
from harcache.pipeline.base.files import file_digest
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.clips import Clip, read_manifest
from harcache.pipeline.params import DatasetParams, DetectParams, GivenBoxesParams, NoDetectParams
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.outcomes import Counts
from harcache.pipeline.work.plan import Unit, Wanted
from harcache.stages.persons import given_boxes, no_boxes
from harcache.stages.persons.extraction import Context, extract_part, extract_video
from harcache.stages.persons.tracking import follow_persons
from harcache.stages.shared.rates import Timer
from harcache.stages.shared.units import Parts, all_outcomes, build_parts, finish_stage
from harcache.stages.shared.workspace import Workspace

__all__ = ["between", "find_persons", "process", "run"]

_ANYWHERE = np.empty((0, 5), np.float32)  # a detector is given no boxes


def run(params: DatasetParams, workspace: Workspace, engine: Engine) -> Counts:
    """Find the persons in every clip of the manifest."""
    if isinstance(params.detect, NoDetectParams):
        return no_boxes.run(workspace, engine)
    if isinstance(params.detect, GivenBoxesParams):
        return given_boxes.run(params.detect, workspace, engine)
    clips = read_manifest(workspace.manifest)
    # Fetched here once, before many workers do; other weights of the same name make other boxes.
    weights = file_digest(find_weights(params.detect.weights, workspace.weights_dir))
    own = fingerprint("detect", params.detect.fingerprint, weights)
    wanted = [Wanted(clip, fingerprint(own, clip.fingerprint)) for clip in clips]
    context = Context(
        workspace.detections, workspace.videos, params.detect, workspace.weights_dir, workspace.device, own
    )
    parts = Parts("detect", workspace.detections, workspace.detections, wanted)
    records = build_parts(parts, process, context, engine, workspace.retry_failed)
    return finish_stage("detect", workspace, all_outcomes(records))


def process(unit: Unit, context: Context) -> Report:
    """Make one part: the boxes of its clips."""
    assert isinstance(context.params, DetectParams)
    every = context.params.every

    def wanted(clip: Clip) -> list[np.ndarray | None]:
        looked = set(_looked_at(clip.frames, every))
        return [_ANYWHERE if frame in looked else None for frame in range(clip.frames)]

    return extract_part(
        unit,
        context,
        wanted,
        lambda clip, found: between(_looked_at(clip.frames, every), found),
        write_detections,
    )


def between(looked_at: Sequence[int], found: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the boxes of all frames from those ``found``, (n, 5), in some, of which 0 is the first.

    Who is seen on both sides of a gap moves in a straight line, score included; who is seen on one side only
    stays up to the middle.
    """
    boxes = list(found[:1])
    for (first, before), (last, after) in pairwise(zip(looked_at, found, strict=True)):
        links = follow_persons([before, after])
        steps = np.arange(1, last - first) / (last - first)
        boxes += [_blend(before, after, links, step) for step in steps]
        boxes.append(after)
    return boxes


def _blend(before: np.ndarray, after: np.ndarray, links: np.ndarray, step: float) -> np.ndarray:
    """Boxes at ``step`` (0 to 1) of the way, best score first."""
    both = links[(links >= 0).all(axis=1)]
    moving = (1 - step) * before[both[:, 0]] + step * after[both[:, 1]]
    side, boxes = (0, before) if step < 0.5 else (1, after)
    alone = boxes[links[(links[:, 1 - side] < 0), side]]
    rows = np.concatenate([moving, alone]).astype(np.float32)
    return rows[np.argsort(-rows[:, 4], kind="stable")]


def _looked_at(frames: int, every: int) -> list[int]:
    """Every so many frames, and the last one, so that nothing has to be guessed beyond what was seen."""
    return sorted({*range(0, frames, every), frames - 1})


def find_persons(frames: Iterable[np.ndarray], detector: Network, timer: Timer) -> list[np.ndarray]:
    """Return the boxes in each of the (H, W, 3) uint8 RGB frames, (n, 5) float32: x1 y1 x2 y2 score.

    ``timer`` counts the network's time; only a few batches of frames are kept at a time.
    """
    return extract_video(detector, ((frame, _ANYWHERE) for frame in frames), timer)

"""No detector at all: poses that are brought along need no boxes, and nobody opens a video for them."""

from pathlib import Path

import numpy as np

from harcache.cache.annotations import write_detections
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.clips import read_manifest
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.outcomes import Counts
from harcache.pipeline.work.plan import Unit, Wanted
from harcache.stages.shared.rates import Timer
from harcache.stages.shared.units import Parts, all_outcomes, build_parts, build_table_part, finish_stage
from harcache.stages.shared.workspace import Workspace

__all__ = ["process", "run"]


def run(workspace: Workspace, engine: Engine) -> Counts:
    """Give every clip empty boxes, without opening a video."""
    clips = read_manifest(workspace.manifest)
    wanted = [Wanted(clip, fingerprint("detect", "none", clip.frames)) for clip in clips]
    parts = Parts("detect", workspace.detections, workspace.detections, wanted)
    records = build_parts(parts, process, workspace.detections, engine, workspace.retry_failed)
    return finish_stage("detect", workspace, all_outcomes(records))


def process(unit: Unit, folder: Path) -> Report:
    """Make one part of clips without boxes."""
    empty = np.empty((0, 5), np.float32)
    return build_table_part(folder, unit, lambda clip: [empty] * clip.frames, write_detections, Timer())

"""Crop: one square box a clip, which holds every kept person of every frame, in ``crops.csv``.

One box for the whole clip keeps the motion of the persons in the picture (EPAM-Net, section 3); a box a frame
would follow them and lose it.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from harcache.cache.annotations import read_poses
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.base.progress import progress, say
from harcache.pipeline.clips import Clip, read_manifest
from harcache.pipeline.params import CropParams, DatasetParams
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import Counts, table_problem
from harcache.pipeline.work.parts import Outcome
from harcache.stages.shared.crop_table import WHOLE_IMAGE, Crop, flag_counts, read_crops, write_crops
from harcache.stages.shared.quality import quality_of
from harcache.stages.shared.units import finish_stage, inputs_from, parts_of
from harcache.stages.shared.workspace import Workspace

__all__ = ["crop_of", "global_box", "run"]

_LEAST_EXTENT = 10.0  # pixels; persons smaller than that are no persons (released code)


def run(params: DatasetParams, workspace: Workspace, engine: Engine) -> Counts:
    """Box every clip that has poses. Light enough to run here, without workers."""
    clips = read_manifest(workspace.manifest)
    detected = inputs_from(workspace.detections, clips)
    # What the pose stage skipped is in no part of it.
    inputs = inputs_from(workspace.poses, [clip for clip in clips if clip.id in detected.fingerprints])
    skipped = [*detected.skipped, *inputs.skipped]
    known = _known(workspace)
    crops: list[Crop] = []
    outcomes: list[Outcome] = []
    with progress(len(clips), "crop", done=len(skipped)) as bar:
        for clip in (clip for clip in clips if clip.id in inputs.fingerprints):
            current = fingerprint("crop", inputs.fingerprints[clip.id], params.crop.fingerprint)
            try:
                crop = _crop(clip, current, known, parts_of(workspace.poses, inputs.token), params.crop)
                crop = crop.with_dropped(inputs.noted.get(clip.id))
                crops.append(replace(crop, clip=clip.fingerprint))
                outcomes.append(Outcome(clip.id, "ok", current))
            except HarcacheError as error:
                outcomes.append(Outcome(clip.id, "failed", current, str(error)))
            bar.advance(1, failed=outcomes[-1].status == "failed")
    write_crops(workspace.crops, crops)
    whole = sum(crop.source != "persons" for crop in crops)
    say(f"crop: {whole} of {len(crops)} boxes are the whole image")
    counts = flag_counts(crops)
    flagged = ", ".join(f"{count} {flag}" for flag, count in counts.items() if count)
    say(f"crop: flags of {len(crops)} clips: {flagged or 'none'}")
    return finish_stage("crop", workspace, [*outcomes, *skipped], tables=[workspace.crops])


def _known(workspace: Workspace) -> dict[str, Crop]:
    """Return the crops that are there; none where the table is not as this stage wrote it."""
    try:
        problem = table_problem(workspace.crops, workspace.counts("crop"))
    except HarcacheError:
        # This run writes the counts anew, and what can't be checked is measured again.
        return {}
    return {} if problem or not workspace.crops.exists() else read_crops(workspace.crops)


def global_box(
    keypoints: np.ndarray, image_size: tuple[int, int], padding: float = 0.25, fit: str = "clip"
) -> tuple[int, int, int, int]:
    """Return the square box around all keypoints of a clip: x1 y1 x2 y2, whole pixels of the frame.

    ``keypoints``: (M, T, K, 2) pixels; a coordinate that is 0 or not finite does not count. ``image_size``:
    height, width. The half extents grow by the part ``padding``, and the shorter side to the longer. What
    leaves the image is cut off with ``fit`` "clip" and stays with "pad". The box is the whole image when the
    keypoints' extent is under 10 pixels in x or y, and when the box misses the image. Source, but for such a
    miss: EPAM-Net, section 3, and its released code.
    """
    height, width = image_size
    coordinates = np.nan_to_num(np.asarray(keypoints, dtype=np.float64), posinf=0, neginf=0).reshape(-1, 2)
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for axis in (0, 1):
        counted = coordinates[coordinates[:, axis] != 0, axis]
        low[axis], high[axis] = counted.min(initial=np.inf), counted.max(initial=-np.inf)
    if not (high - low >= _LEAST_EXTENT).all():
        return 0, 0, width, height
    center, half = (low + high) / 2, ((high - low) / 2 * (1 + padding)).max()
    x1, y1, x2, y2 = (int(edge) for edge in (*(center - half), *(center + half)))
    inside = max(0, x1), max(0, y1), min(width, x2), min(height, y2)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return 0, 0, width, height
    return inside if fit == "clip" else (x1, y1, x2, y2)


def crop_of(
    keypoints: np.ndarray, scores: np.ndarray, image_size: tuple[int, int], params: CropParams
) -> tuple[tuple[int, int, int, int], str]:
    """Return the box of a clip, as `global_box` does of the keypoints that score enough, and its source.

    ``keypoints``: (M, T, 17, 2) pixels, ``scores``: (M, T, 17). `Crop` says what box and source are.
    """
    counted = np.where((scores >= params.min_score)[..., None], keypoints, np.nan)
    box = global_box(counted, image_size, params.padding, params.fit)
    return box, _source(keypoints, scores, counted, box, image_size)


def _crop(
    clip: Clip, current: str, known: Mapping[str, Crop], parts: Mapping[str, Path], params: CropParams
) -> Crop:
    before = known.get(clip.id)
    quality = before.quality if before is not None and before.fingerprint == current else None
    if before is not None and quality is not None and quality.seen is not None:
        return before
    keypoints, scores = read_poses(parts[clip.id], clip.id)
    if keypoints.shape[1] != clip.frames:
        raise HarcacheError(
            f"its poses are of {keypoints.shape[1]} frames, the manifest has {clip.frames}; run the stages "
            "detect and pose again"
        )
    size = (clip.height, clip.width)
    box, source = crop_of(keypoints, scores, size, params)
    # Rounded, so that a table reads as it was written.
    found = quality_of(keypoints, scores, size, params.min_score)
    measured = ("confidence", "outside", "seen")
    rounded = replace(found, **{name: round(getattr(found, name), 4) for name in measured})
    return Crop(clip.id, box, source, current, rounded)


def _source(
    keypoints: np.ndarray,
    scores: np.ndarray,
    counted: np.ndarray,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
) -> str:
    if not np.isfinite(keypoints).any():
        return f"{WHOLE_IMAGE}: " + ("no place in the picture is known" if scores.any() else "nobody found")
    if not np.isfinite(counted).any():
        return f"{WHOLE_IMAGE}: no keypoint scores enough"
    return f"{WHOLE_IMAGE}: persons fill or miss it" if box == (0, 0, size[1], size[0]) else "persons"

"""How well persons and poses were found, where the truth is known: as boxes and keypoints were drawn."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from harcache.cache.annotations import read_detections, read_poses
from harcache.pipeline.clips import Clip
from harcache.pipeline.datasets.truth import Truth
from harcache.stages.persons.boxes import overlaps
from harcache.stages.shared.units import inputs_from, parts_of
from harcache.stages.shared.workspace import Workspace

__all__ = ["against_truth", "detection_quality", "pck"]

_SAME_BOX = 0.5  # intersection over union from which a box counts as found
_PCK_RADIUS = 0.2  # of the torso's length
_SHOULDERS, _HIPS = (5, 6), (11, 12)


def against_truth(
    workspace: Workspace, clips: Sequence[Clip], truth: Mapping[str, Truth]
) -> dict[str, dict[str, float]]:
    """Return recall and precision of the detected boxes, and PCK of the poses, over the ``clips``."""
    boxes, points = np.zeros(3, int), np.zeros(2, int)
    detected, posed = inputs_from(workspace.detections, clips), inputs_from(workspace.poses, clips)
    for clip in clips:
        known = truth[clip.id]
        found = read_detections(parts_of(workspace.detections, detected.token)[clip.id], clip.id)
        boxes += detection_quality(found, list(known.boxes.swapaxes(0, 1)))
        keypoints, _ = read_poses(parts_of(workspace.poses, posed.token)[clip.id], clip.id)
        points += pck(keypoints, known.keypoints)
    right, found_boxes, true_boxes = boxes.tolist()
    return {
        "detect": {"recall": right / true_boxes, "precision": right / max(found_boxes, 1)},
        "pose": {"pck": float(points[0] / points[1])},
    }


def detection_quality(found: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> tuple[int, int, int]:
    """Count (boxes found rightly, boxes found, true boxes) over frames; a true box counts for one found box.

    Both: a frame's (n, 4 or more), x1 y1 x2 y2, pixels. Right is an intersection over union of 0.5 or more.
    """
    right = 0
    for boxes, wanted in zip(found, true, strict=True):
        overlap = overlaps(wanted[:, :4], boxes[:, :4])
        rows, columns = linear_sum_assignment(-overlap)
        right += int((overlap[rows, columns] >= _SAME_BOX).sum())
    return right, sum(map(len, found)), sum(map(len, true))


def pck(found: np.ndarray, true: np.ndarray) -> tuple[int, int]:
    """Count (keypoints within 0.2 torso lengths of the truth, true keypoints): PCK@0.2.

    ``found``: (M, T, 17, 2), NaN where nobody was found; ``true``: (P, T, 17, 2); pixels. In each frame, true
    persons are paired with the found ones that are nearest; a true person without a pair counts as all wrong.
    """
    right = 0
    shoulders, hips = true[:, :, _SHOULDERS].mean(2), true[:, :, _HIPS].mean(2)
    torso = np.linalg.norm(shoulders - hips, axis=-1)
    for t in range(true.shape[1]):
        there = found[np.isfinite(found[:, t]).all(axis=(1, 2)), t]
        distance = np.linalg.norm(true[:, None, t] - there[None], axis=-1)  # (P, found, 17)
        rows, columns = linear_sum_assignment(distance.mean(-1))
        right += int((distance[rows, columns] <= _PCK_RADIUS * torso[rows, t, None]).sum())
    return right, true.shape[0] * true.shape[1] * true.shape[2]

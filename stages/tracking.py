"""Who is who from frame to frame, by boxes alone: the network then sees only the persons who are kept."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from stages.boxes import overlaps

__all__ = ["link_persons"]

_LEAST_OVERLAP = 0.1  # intersection over union under which two boxes are two persons


def link_persons(boxes: Sequence[np.ndarray], max_persons: int) -> np.ndarray:
    """Follow persons from frame to frame by the overlap of their boxes.

    ``boxes``: a frame's (n, 5) x1 y1 x2 y2 score. Returns (M, T) int, the row of person m's box in frame t
    or -1 where the person is not seen; M is at most ``max_persons``, the persons seen longest first. A person
    who is lost takes up again with the box that overlaps where they were last seen.
    """
    tracks: list[np.ndarray] = []
    last: list[np.ndarray] = []
    for t, found in enumerate(boxes):
        matched = _match(np.array(last).reshape(-1, 4), found[:, :4])
        for box in range(len(found)):
            if box not in matched:
                matched[box] = len(tracks)
                tracks.append(np.full(len(boxes), -1))
                last.append(found[box, :4])
            tracks[matched[box]][t] = box
            last[matched[box]] = found[box, :4]
    score = [float(sum(boxes[t][b, 4] for t, b in enumerate(track) if b >= 0)) for track in tracks]
    seen = [int((track >= 0).sum()) for track in tracks]
    order = sorted(range(len(tracks)), key=lambda m: (-seen[m], -score[m], m))[:max_persons]
    return np.stack([tracks[m] for m in order]) if order else np.empty((0, len(boxes)), int)


def _match(before: np.ndarray, now: np.ndarray) -> dict[int, int]:
    """Return {row of ``now``: row of ``before``} of the pairs that together overlap most."""
    overlap = overlaps(before, now)
    rows, columns = linear_sum_assignment(-overlap)
    return {int(c): int(r) for r, c in zip(rows, columns, strict=True) if overlap[r, c] >= _LEAST_OVERLAP}

"""Who is who from frame to frame, by boxes alone: the network then sees only the persons who are kept.

A whole clip of few persons needs less than the trackers for streams of crowds do, whose rules on when a track
begins and is given up lose frames; a predicted box and the best pairing keep as many identities.
"""

from collections.abc import Sequence

import numpy as np

from harcache.pipeline.base.errors import HarcacheError
from harcache.stages.persons.boxes import overlaps

__all__ = ["LINKING", "link_persons"]

LINKING = 2
"""The version of these rules, part of the poses' fingerprints: the same boxes linked otherwise raise it."""

_LEAST_OVERLAP = 0.1  # intersection over union under which two boxes are two persons
# An alpha-beta filter: the shares of a surprise that place and speed take over.
_PLACE_GAIN = 0.6
_SPEED_GAIN = 0.15
_LONGEST_GLIDE = 10  # frames that an unseen person is thought to move on
_STOPPED = 0.5  # what the overlap with the last place counts beside that with the expected one


class _Persons:
    """Where everyone was last seen, how they moved, and which box was theirs in which frame.

    In arrays that grow by doubling: in an hour's video false boxes make thousands of them.
    """

    def __init__(self) -> None:
        self.rows: list[dict[int, int]] = []  # of each person, the box's row by frame
        self.scores: list[float] = []  # sums
        self._boxes, self._speeds = np.empty((16, 4)), np.zeros((16, 2))  # pixels; pixels a frame
        self._last = np.zeros(16, int)  # frame

    @property
    def boxes(self) -> np.ndarray:
        """The boxes (n, 4) where they were last seen."""
        return self._boxes[: len(self.rows)]

    def expected(self, t: int) -> np.ndarray:
        """The boxes (n, 4) where they should be in frame ``t``."""
        count = len(self.rows)
        frames = np.minimum(t - self._last[:count], _LONGEST_GLIDE)
        return self.boxes + np.tile(self._speeds[:count], 2) * frames[:, None]

    def add(self, t: int, row: int, box: np.ndarray) -> None:
        """Meet someone new in frame ``t``."""
        number = len(self.rows)
        if number == len(self._last):
            self._boxes, self._speeds, self._last = (
                np.concatenate([values, np.zeros_like(values)])
                for values in (self._boxes, self._speeds, self._last)
            )
        self._boxes[number], self._last[number] = box[:4], t
        self.rows.append({t: row})
        self.scores.append(float(box[4]))

    def follow(self, number: int, expected: np.ndarray, t: int, row: int, box: np.ndarray) -> None:
        """Take over a box that was found in frame ``t``, where a person was ``expected`` (4,)."""
        surprise = box[:4] - expected
        self._boxes[number] = expected + _PLACE_GAIN * surprise
        elapsed = t - self._last[number]
        self._speeds[number] += _SPEED_GAIN * (surprise[:2] + surprise[2:]) / 2 / elapsed
        self._last[number], self.rows[number][t] = t, row
        self.scores[number] += float(box[4])


def link_persons(boxes: Sequence[np.ndarray], max_persons: int) -> np.ndarray:
    """Follow persons from frame to frame by the overlap of their boxes with where they should be by now.

    ``boxes``: a frame's (n, 5) x1 y1 x2 y2 score. Returns (M, T) int, the row of person m's box in frame t
    or -1 where the person is not seen; M is at most ``max_persons``, the persons seen longest first. A person
    who is lost takes up again with a box that overlaps where they were going or where they were last seen.
    Raises HarcacheError for boxes that are not finite.
    """
    persons = _Persons()
    for t, found in enumerate(boxes):
        if not np.isfinite(found).all():
            raise HarcacheError(
                f"frame {t} has a box that is not finite: expected x1 y1 x2 y2 score in pixels; detect again"
            )
        expected = persons.expected(t)
        matched = _match(expected, persons.boxes, found[:, :4])
        for row, box in enumerate(found):
            if row in matched:
                persons.follow(matched[row], expected[matched[row]], t, row, box)
            else:
                persons.add(t, row, box)
    kept = sorted(
        range(len(persons.rows)), key=lambda number: (-len(persons.rows[number]), -persons.scores[number])
    )[:max_persons]
    links = np.full((len(kept), len(boxes)), -1)
    for link, number in zip(links, kept, strict=True):
        link[list(persons.rows[number])] = list(persons.rows[number].values())
    return links


def _match(expected: np.ndarray, last: np.ndarray, boxes: np.ndarray) -> dict[int, int]:
    """Return {row of ``boxes``: number of the person} of the pairs that together overlap most."""
    from scipy.optimize import linear_sum_assignment  # takes half a second to import

    overlap = np.maximum(overlaps(expected, boxes), _STOPPED * overlaps(last, boxes))
    overlap[overlap < _LEAST_OVERLAP] = 0
    rows, columns = linear_sum_assignment(-overlap)
    return {int(c): int(r) for r, c in zip(rows, columns, strict=True) if overlap[r, c] > 0}

"""Who is who from frame to frame, by boxes alone: the network then sees only the persons who are kept.

A whole clip of few persons needs less than the trackers for streams of crowds do, whose rules on when a track
begins and is given up lose frames; a predicted box and the best pairing keep as many identities.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.errors import HarcacheError
from stages.persons.boxes import overlaps

__all__ = ["LINKING", "link_persons"]

LINKING = 2
"""The version of these rules, part of the poses' fingerprints: the same boxes linked otherwise raise it."""

_LEAST_OVERLAP = 0.1  # intersection over union under which two boxes are two persons
# An alpha-beta filter: the shares of a surprise that place and speed take over.
_PLACE_GAIN = 0.6
_SPEED_GAIN = 0.15
_LONGEST_GLIDE = 10  # frames that an unseen person is thought to move on
_STOPPED = 0.5  # what the overlap with the last place counts beside that with the expected one


class _Person:
    """Where someone was last seen, how they moved, and which box was theirs in which frame."""

    def __init__(self, t: int, row: int, box: np.ndarray) -> None:
        self.box = box[:4].astype(float)
        self.speed = np.zeros(2)  # pixels a frame
        self.last, self.rows, self.score = t, {t: row}, float(box[4])

    def expected(self, t: int) -> np.ndarray:
        """The box (4,) where the person should be in frame ``t``."""
        return self.box + np.tile(self.speed, 2) * min(t - self.last, _LONGEST_GLIDE)

    def follow(self, t: int, row: int, box: np.ndarray) -> None:
        """Take over a box that was found in frame ``t``."""
        expected = self.expected(t)
        surprise = box[:4] - expected
        self.box = expected + _PLACE_GAIN * surprise
        self.speed += _SPEED_GAIN * (surprise[:2] + surprise[2:]) / 2 / (t - self.last)
        self.last, self.rows[t], self.score = t, row, self.score + float(box[4])


def link_persons(boxes: Sequence[np.ndarray], max_persons: int) -> np.ndarray:
    """Follow persons from frame to frame by the overlap of their boxes with where they should be by now.

    ``boxes``: a frame's (n, 5) x1 y1 x2 y2 score. Returns (M, T) int, the row of person m's box in frame t
    or -1 where the person is not seen; M is at most ``max_persons``, the persons seen longest first. A person
    who is lost takes up again with a box that overlaps where they were going or where they were last seen.
    Raises HarcacheError for boxes that are not finite.
    """
    persons: list[_Person] = []
    for t, found in enumerate(boxes):
        if not np.isfinite(found).all():
            raise HarcacheError(
                f"frame {t} has a box that is not finite: expected x1 y1 x2 y2 score in pixels; detect again"
            )
        matched = _match(persons, t, found[:, :4])
        for row, box in enumerate(found):
            if row in matched:
                persons[matched[row]].follow(t, row, box)
            else:
                persons.append(_Person(t, row, box))
    persons.sort(key=lambda person: (-len(person.rows), -person.score))
    links = np.full((min(len(persons), max_persons), len(boxes)), -1)
    for link, person in zip(links, persons, strict=False):
        link[list(person.rows)] = list(person.rows.values())
    return links


def _match(persons: Sequence[_Person], t: int, boxes: np.ndarray) -> dict[int, int]:
    """Return {row of ``boxes``: number of the person} of the pairs that together overlap most."""
    from scipy.optimize import linear_sum_assignment  # takes half a second to import

    expected = np.array([person.expected(t) for person in persons]).reshape(-1, 4)
    last = np.array([person.box for person in persons]).reshape(-1, 4)
    overlap = np.maximum(overlaps(expected, boxes), _STOPPED * overlaps(last, boxes))
    overlap[overlap < _LEAST_OVERLAP] = 0
    rows, columns = linear_sum_assignment(-overlap)
    return {int(c): int(r) for r, c in zip(rows, columns, strict=True) if overlap[r, c] > 0}

"""Who is who from frame to frame, by boxes alone: the network then sees only the persons who are kept.

A whole clip of few persons needs less than the trackers for streams of crowds do, whose rules on when a track
begins and is given up lose frames; a predicted box and the best pairing keep as many identities. A box that
overlaps nobody begins a new track; `stages.persons.slots` says which tracks are one person, and who is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harcache.pipeline.base.errors import HarcacheError
from harcache.stages.persons.boxes import overlaps
from harcache.stages.persons.slots import fill_slots, join_tracks

__all__ = ["LINKING", "Links", "follow_persons", "link_boxes", "link_persons"]

LINKING = 2
"""The version of the rules of `follow_persons`, part of the poses' fingerprints: other tracks raise it."""

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


@dataclass(frozen=True)
class Links:
    """Which box is whose: ``rows`` (M, T) int, the row of slot m's box in frame t, or -1 where it has none.

    ``shared``: whether a slot holds several tracks. ``dropped``: boxes that are in no slot.
    """

    rows: np.ndarray
    shared: bool
    dropped: int


def link_persons(boxes: Sequence[np.ndarray], max_persons: int) -> np.ndarray:
    """Return ``rows`` of what `link_boxes` returns."""
    return link_boxes(boxes, max_persons).rows


def link_boxes(boxes: Sequence[np.ndarray], max_persons: int) -> Links:
    """Give each person one of at most ``max_persons`` slots, whoever is seen longest first.

    ``boxes``: a frame's (n, 5) x1 y1 x2 y2 score. In frames with more boxes than slots those of the longest
    tracks are kept, in all others every box is. Tracks are those of `follow_persons`, joined and placed as
    `join_tracks` and `fill_slots` say. Raises HarcacheError for boxes that are not finite.
    """
    tracks = _tracks(boxes)
    persons = join_tracks(tracks, boxes)
    shown = fill_slots([np.array(list(track)) for track in tracks], persons, len(boxes), max_persons)
    shown = shown[np.argsort(-(shown >= 0).sum(axis=1), kind="stable")]
    rows = np.full(shown.shape, -1)
    for slot, t in np.argwhere(shown >= 0):
        rows[slot, t] = tracks[shown[slot, t]][t]
    dropped = sum(map(len, boxes)) - int((rows >= 0).sum())
    return Links(rows, len(np.unique(shown[shown >= 0])) > len(shown), dropped)


def follow_persons(boxes: Sequence[np.ndarray]) -> np.ndarray:
    """Follow persons from frame to frame by the overlap of their boxes with where they should be by now.

    ``boxes``: a frame's (n, 5) x1 y1 x2 y2 score. Returns (N, T) int, the row of track n's box in frame t
    or -1 where it has none, the longest tracks first. A person who is lost takes up again with a box that
    overlaps where they were going or where they were last seen. Raises HarcacheError for boxes that are not
    finite.
    """
    tracks = _tracks(boxes)
    links = np.full((len(tracks), len(boxes)), -1)
    for link, track in zip(links, tracks, strict=True):
        link[list(track)] = list(track.values())
    return links


def _tracks(boxes: Sequence[np.ndarray]) -> list[dict[int, int]]:
    """Return the row of each track's box by frame, the longest tracks first."""
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
    order = sorted(
        range(len(persons.rows)), key=lambda number: (-len(persons.rows[number]), -persons.scores[number])
    )
    return [persons.rows[number] for number in order]


def _match(expected: np.ndarray, last: np.ndarray, boxes: np.ndarray) -> dict[int, int]:
    """Return {row of ``boxes``: number of the person} of the pairs that together overlap most."""
    from scipy.optimize import linear_sum_assignment  # takes half a second to import

    overlap = np.maximum(overlaps(expected, boxes), _STOPPED * overlaps(last, boxes))
    overlap[overlap < _LEAST_OVERLAP] = 0
    rows, columns = linear_sum_assignment(-overlap)
    return {int(c): int(r) for r, c in zip(rows, columns, strict=True) if overlap[r, c] > 0}

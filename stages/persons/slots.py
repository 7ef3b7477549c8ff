"""Which tracks of a clip are one person, and which slot of the clip's poses shows whom in each frame.

A clip has ``max_persons`` slots. They are filled frame by frame: who leaves keeps no slot from those who come
later. Before slots were shared (version 0 of these rules), a slot was one track's for the whole clip.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

__all__ = ["SLOT_RULES", "Placement", "fill_slots", "join_tracks", "place_persons"]

SLOT_RULES = 1
"""The version of these rules, see `stages.shared.units.Rules`: other slots for the same tracks raise it."""

_NEVER = 1e12  # pixels: the distance between two who are seen together


def join_tracks(tracks: Sequence[Mapping[int, int]], boxes: Sequence[np.ndarray]) -> list[int]:
    """Return the person of each track, as the number of that person's first track.

    ``tracks``: the row of the box by frame, frames in order; ``boxes``: each frame's (n, 4 or more). However
    far away, a track that begins continues the one that ended in the frame before. Where as many begin as
    ended, each continues the nearest. A track that begins alone after a gap continues the only person who is
    not seen at that moment. Nobody continues a track that they are seen together with, before or afterwards.
    """
    persons = list(range(len(tracks)))
    begins: dict[int, list[int]] = defaultdict(list)
    present: list[list[int]] = [[] for _ in boxes]
    for number, track in enumerate(tracks):
        begins[next(iter(track))].append(number)
        for t in track:
            present[t].append(number)
    seen: dict[int, set[int]] = {}  # the frames of those who were seen so far, later ones included
    for t in sorted(begins):
        here = {persons[number] for number in present[t]}
        before = {persons[number]: number for number in present[t - 1]} if t else {}
        free = {
            number: [p for p in before if p not in here and seen[p].isdisjoint(tracks[number])]
            for number in begins[t]
        }
        if any(free.values()):
            pairs = _nearest(free, t, tracks, before, boxes)
        else:
            pairs = _only_lost(begins[t], here, seen, tracks)
        for number, person in pairs:
            persons[number] = person
        for number in begins[t]:
            seen.setdefault(persons[number], set()).update(tracks[number])
    return persons


def _nearest(
    free: Mapping[int, Sequence[int]],
    t: int,
    tracks: Sequence[Mapping[int, int]],
    before: Mapping[int, int],
    boxes: Sequence[np.ndarray],
) -> list[tuple[int, int]]:
    """Pair tracks that begin in frame ``t`` with those whom they are ``free`` to continue, if as many ended.

    ``before``: the track in frame t - 1 of each person.
    """
    from scipy.optimize import linear_sum_assignment  # takes half a second to import

    new, ended = list(free), sorted({person for those in free.values() for person in those})
    if len(new) != len(ended):
        return []
    if len(new) == 1:
        return [(new[0], ended[0])]
    now = np.array([_center(boxes[t][tracks[number][t]]) for number in new])
    then = np.array([_center(boxes[t - 1][tracks[before[person]][t - 1]]) for person in ended])
    apart = np.linalg.norm(now[:, None] - then, axis=-1)
    allowed = np.array([[person in free[number] for person in ended] for number in new])
    rows, columns = linear_sum_assignment(np.where(allowed, apart, _NEVER))
    return [(new[r], ended[c]) for r, c in zip(rows, columns, strict=True) if allowed[r, c]]


def _center(box: np.ndarray) -> np.ndarray:
    return (box[:2] + box[2:4]) / 2


def _only_lost(
    new: Sequence[int], here: set[int], seen: Mapping[int, set[int]], tracks: Sequence[Mapping[int, int]]
) -> list[tuple[int, int]]:
    """Pair the only new track with the only person who was seen before and is not ``here``."""
    if len(new) != 1:
        return []
    lost = (
        person for person, frames in seen.items() if person not in here and frames.isdisjoint(tracks[new[0]])
    )
    found = list(islice(lost, 2))
    return [(new[0], found[0])] if len(found) == 1 else []


def fill_slots(tracks: Sequence[np.ndarray], persons: Sequence[int], frames: int, slots: int) -> np.ndarray:
    """Return the number of the track that each slot shows in each frame, or -1: (slots in use, ``frames``).

    ``tracks``: the frames (n,) of each, in the order in which they are served, of ``persons``. The first
    persons have a slot each, as before any was shared. The others fill what is left: a track goes where the
    slot of its person is free, then where a slot stays free for longest, and from there on again. So a frame
    with more tracks than slots shows the first of them, and a frame with fewer shows all.
    """
    shown = np.full((slots, frames), -1)
    left = np.full(frames, slots)
    slot_of: dict[int, int] = {}
    opened = 0
    for number, (where, person) in enumerate(zip(tracks, persons, strict=True)):
        where = where[left[where] > 0]
        left[where] -= 1
        if person not in slot_of and opened < slots:
            slot_of[person], opened = opened, opened + 1
        if person in slot_of:
            own = shown[slot_of[person]]
            free = own[where] < 0
            own[where[free]] = number
            where = where[~free]
        while len(where):
            taken = shown[:, where] >= 0
            length = np.where(taken.any(axis=1), taken.argmax(axis=1), len(where))
            longest = int(length.argmax())
            slot_of.setdefault(person, longest)
            shown[longest, where[: length[longest]]] = number
            where = where[length[longest] :]
    return shown[:opened]


@dataclass(frozen=True)
class Placement:
    """Which of N persons each of M slots shows.

    ``owners`` (M,) are those who have a slot; ``others`` (M, T) who is shown there instead in some frames,
    else -1. ``dropped``: persons who are in no slot, added up over the frames.
    """

    owners: np.ndarray
    others: np.ndarray
    dropped: int

    @property
    def shared(self) -> bool:
        """Whether a slot shows several persons."""
        return bool((self.others >= 0).any())

    def take(self, values: np.ndarray) -> np.ndarray:
        """Return what the slots show of all persons' ``values``: (M, T, ...) of (N, T, ...)."""
        taken = values[self.owners]
        slots, frames = np.nonzero(self.others >= 0)
        taken[slots, frames] = values[self.others[slots, frames], frames]
        return taken


def place_persons(seen: np.ndarray, frames: int, slots: int) -> Placement:
    """Give the slots to those who are seen in most frames, in their order, and what is left to the others.

    ``seen``: (N, T) bool; only the first ``frames`` of T are filled and counted.
    """
    order = np.argsort(-seen.sum(axis=1), kind="stable")
    owners = np.sort(order[:slots])
    order = np.concatenate([owners, order[slots:]])
    counted = seen[:, :frames]
    tracks = [np.flatnonzero(counted[person]) for person in order]
    shown = fill_slots(tracks, order.tolist(), counted.shape[1], slots)
    others = np.full((len(owners), seen.shape[1]), -1)
    slot, frame = np.nonzero(shown >= len(owners))
    others[slot, frame] = order[shown[slot, frame]]
    return Placement(owners, others, int(counted.sum() - (shown >= 0).sum()))

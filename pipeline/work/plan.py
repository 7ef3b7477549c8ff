"""Which parts stand, which are made, and which clips go where; decided from the records alone, purely.

Parts are packed greedily in manifest order and never moved afterwards, so a change costs one part. The
layout is worked out again from the records, so an interrupted run goes on to the same parts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.garbage import collection_paused
from harcache.pipeline.clips import Clip
from harcache.pipeline.work.parts import Record

__all__ = ["Plan", "Unit", "Wanted", "plan"]

_Layout = dict[int, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A clip that the stage shall hold.

    ``fingerprint`` stands for all that its result depends on; ``weight`` is its rows, or 1 where parts
    are counted in clips. ``alternative`` is another one that a result of the same inputs may have, see
    `stages.shared.units.Rules`.
    """

    clip: Clip
    fingerprint: str
    weight: int = 1
    alternative: str = ""


@dataclass(frozen=True, slots=True)
class Unit:
    """One part to make: its clips, in order, and the fingerprint of each.

    ``given_up``: (id, reason) of clips that end as failed without being looked at. ``trial``: whether the
    unit is only to be tried; all is done, but nothing is kept.
    """

    part: int
    clips: tuple[Clip, ...]
    fingerprints: tuple[str, ...]
    given_up: tuple[tuple[str, str], ...] = ()
    trial: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Parts that stand, units to make, and numbers of parts to remove unless a unit replaces them."""

    keep: tuple[Record, ...]
    make: tuple[Unit, ...]
    stale: tuple[int, ...]

    @property
    def remove(self) -> tuple[int, ...]:
        """Stale parts that no unit replaces."""
        made = {unit.part for unit in self.make}
        return tuple(part for part in self.stale if part not in made)


@collection_paused()
def plan(
    wanted: Sequence[Wanted],
    records: Sequence[Record],
    capacity: int,
    retry_failed: bool = False,
    rules: int = 0,
) -> Plan:
    """Return the work that turns ``records`` into ``wanted``; every wanted clip is in one part, whole.

    A part stands when it was made by the current ``rules`` and all its clips are wanted as they are. One with
    a clip that changed or left (or, with ``retry_failed``, that failed) is made again under its number from
    the clips still wanted. All others
    are packed into new parts of at most ``capacity``. If the units are made in part, in any order, the
    next plan has exactly the rest. A clip heavier than ``capacity`` raises HarcacheError.
    """
    by_id = {one.clip.id: one for one in wanted}
    _check_weights(wanted, capacity)
    keep = _standing([record for record in records if record.rules == rules], by_id, retry_failed)
    standing = {record.part for record in keep}
    fixed = _fixed_layout(records, standing, by_id, capacity)
    layout = _extend(fixed, wanted, capacity)
    return Plan(
        keep=tuple(keep),
        make=tuple(_unit(part, layout[part], by_id) for part in sorted(layout) if part not in standing),
        stale=tuple(sorted(record.part for record in records if record.part not in standing)),
    )


def _check_weights(wanted: Iterable[Wanted], capacity: int) -> None:
    for one in wanted:
        if one.weight > capacity:
            raise HarcacheError(
                f"clip '{one.clip.id}' has {one.weight} rows, a part takes {capacity}: "
                "raise shard_rows, or store fewer frames with max_frames"
            )


def _standing(records: Iterable[Record], by_id: Mapping[str, Wanted], retry_failed: bool) -> list[Record]:
    keep, taken = [], set[str]()
    for record in sorted(records, key=lambda record: record.part):
        ids = {outcome.id for outcome in record.outcomes}
        current = all(
            outcome.id in by_id
            and outcome.fingerprint in (by_id[outcome.id].fingerprint, by_id[outcome.id].alternative)
            and not (retry_failed and outcome.status == "failed")
            for outcome in record.outcomes
        )
        if current and ids and not ids & taken:
            keep.append(record)
            taken |= ids
    return keep


def _fixed_layout(
    records: Iterable[Record], standing: set[int], by_id: Mapping[str, Wanted], capacity: int
) -> _Layout:
    """Return the clips that recorded parts have or get again; a stale part gives up what no longer fits."""
    layout, taken = _Layout(), set[str]()
    # Standing parts first: they can't give a clip up.
    for record in sorted(records, key=lambda record: (record.part not in standing, record.part)):
        ids = [o.id for o in record.outcomes if o.id in by_id and o.id not in taken]
        if record.part not in standing:
            ids = next(_pack([by_id[name] for name in ids], capacity), [])
        if ids:
            layout[record.part] = tuple(ids)
            taken.update(ids)
    return layout


def _extend(fixed: _Layout, wanted: Sequence[Wanted], capacity: int) -> _Layout:
    """Return ``fixed`` with a place for every wanted clip.

    Packs from the first part on. Where that contradicts a fixed part, an earlier run had another manifest:
    the parts up to there are taken as given and the packing starts again behind them. So the holes of an
    interrupted run are filled just as that run would have.
    """
    free = {one.clip.id: one for one in wanted}
    given, ahead = _Layout(), sorted(fixed, reverse=True)
    first = 0
    while True:
        packed, wrong = _pack_up_to_a_contradiction(free.values(), capacity, first, fixed, ahead)
        if wrong is None:
            return given | packed
        while ahead and ahead[-1] <= wrong:
            part = ahead.pop()
            given[part] = fixed[part]
            for name in fixed[part]:
                del free[name]
        first = wrong + 1


def _pack_up_to_a_contradiction(
    free: Iterable[Wanted], capacity: int, first: int, fixed: _Layout, ahead: Sequence[int]
) -> tuple[_Layout, int | None]:
    """Pack ``free`` into parts from number ``first`` on, until one differs from a fixed one.

    ``ahead``: the fixed parts from ``first`` on, the nearest last. Returns the parts, and which one differs.
    Stops there, so that many contradictions cost no more than one packing of all.
    """
    packed = _Layout()
    for part, ids in enumerate(map(tuple, _pack(free, capacity)), first):
        if fixed.get(part, ids) != ids:
            return packed, part
        packed[part] = ids
    return packed, next((part for part in reversed(ahead) if part not in packed), None)


def _pack(wanted: Iterable[Wanted], capacity: int) -> Iterator[list[str]]:
    ids: list[str] = []
    weight = 0
    for one in wanted:
        if ids and weight + one.weight > capacity:
            yield ids
            ids, weight = [], 0
        ids.append(one.clip.id)
        weight += one.weight
    if ids:
        yield ids


def _unit(part: int, ids: Iterable[str], by_id: Mapping[str, Wanted]) -> Unit:
    chosen = [by_id[name] for name in ids]
    return Unit(part, tuple(one.clip for one in chosen), tuple(one.fingerprint for one in chosen))

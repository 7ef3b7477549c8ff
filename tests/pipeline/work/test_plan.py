import dataclasses
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip
from harcache.pipeline.work.parts import Outcome, Record
from harcache.pipeline.work.plan import Plan, Unit, Wanted, plan

CAPACITY = 10


def _wanted(name: str, weight: int = 1, version: str = "1") -> Wanted:
    clip = Clip(name, f"{name}.mp4", 0, 100, 240, 320, 30.0, 1, 1, "ff")
    return Wanted(clip, version, weight)


def _record(unit: Unit, failed: Iterable[str] = ()) -> Record:
    outcomes = (
        Outcome(clip.id, "failed" if clip.id in failed else "ok", mark)
        for clip, mark in zip(unit.clips, unit.fingerprints, strict=True)
    )
    return Record(unit.part, tuple(outcomes), ())


def _made(records: Iterable[Record], one: Plan, parts: Iterable[int] | None = None) -> list[Record]:
    """Return the records after the plan's units (or those of ``parts`` alone) are made."""
    new = {unit.part: _record(unit) for unit in one.make if parts is None or unit.part in parts}
    old = {r.part: r for r in records if r.part not in one.remove}
    return list((old | new).values())


def _ids(units: Iterable[Unit]) -> list[list[str]]:
    return [[clip.id for clip in unit.clips] for unit in units]


_names = st.sampled_from([f"{i:02d}" for i in range(30)])
_manifests = st.dictionaries(
    _names, st.tuples(st.integers(1, CAPACITY), st.sampled_from("12")), max_size=30
).map(lambda d: [_wanted(name, *d[name]) for name in sorted(d)])


@st.composite
def _histories(draw: st.DrawFn) -> list[Record]:
    """Draw the records that a few runs over other manifests left, each perhaps interrupted."""
    records: list[Record] = []
    for manifest in draw(st.lists(_manifests, max_size=3)):
        one = plan(manifest, records, CAPACITY)
        done = draw(st.sets(st.sampled_from([u.part for u in one.make]))) if one.make else set()
        records = _made(records, one, done)
    return draw(st.permutations(records))


@given(wanted=_manifests, records=_histories())
def test_every_wanted_clip_is_in_exactly_one_part_whatever_was_there(
    wanted: list[Wanted], records: list[Record]
) -> None:
    one = plan(wanted, records, CAPACITY)
    kept = [(o.id, o.fingerprint) for record in one.keep for o in record.outcomes]
    made = [(c.id, f) for unit in one.make for c, f in zip(unit.clips, unit.fingerprints, strict=True)]
    assert sorted(kept + made) == sorted((w.clip.id, w.fingerprint) for w in wanted)


@given(wanted=_manifests, records=_histories())
def test_kept_parts_are_untouched_and_the_others_are_stale(
    wanted: list[Wanted], records: list[Record]
) -> None:
    one = plan(wanted, records, CAPACITY)
    kept = {record.part for record in one.keep}
    assert set(one.keep) <= set(records)
    assert kept.isdisjoint(unit.part for unit in one.make)
    assert set(one.stale) == {record.part for record in records} - kept
    assert len({unit.part for unit in one.make}) == len(one.make)


@given(wanted=_manifests, records=_histories())
def test_no_part_is_empty_or_over_capacity(wanted: list[Wanted], records: list[Record]) -> None:
    weights = {w.clip.id: w.weight for w in wanted}
    for unit in plan(wanted, records, CAPACITY).make:
        assert 0 < sum(weights[clip.id] for clip in unit.clips) <= CAPACITY


@given(wanted=_manifests, records=_histories(), data=st.data())
def test_an_interrupted_run_goes_on_to_exactly_the_rest(
    wanted: list[Wanted], records: list[Record], data: st.DataObject
) -> None:
    whole = plan(wanted, records, CAPACITY)
    parts = [unit.part for unit in whole.make]
    done = data.draw(st.sets(st.sampled_from(parts))) if parts else set()
    rest = plan(wanted, _made(records, whole, done), CAPACITY)
    assert rest.make == tuple(unit for unit in whole.make if unit.part not in done)


@given(wanted=_manifests, records=_histories())
def test_the_plan_does_not_depend_on_the_order_of_records(
    wanted: list[Wanted], records: list[Record]
) -> None:
    assert plan(wanted, records, CAPACITY) == plan(wanted, records[::-1], CAPACITY)


@given(wanted=_manifests, records=_histories())
def test_a_finished_run_leaves_nothing_to_do(wanted: list[Wanted], records: list[Record]) -> None:
    after = plan(wanted, _made(records, plan(wanted, records, CAPACITY)), CAPACITY)
    assert (after.make, after.stale) == ((), ())


@given(wanted=_manifests.filter(bool), data=st.data())
def test_one_changed_clip_touches_one_part(wanted: list[Wanted], data: st.DataObject) -> None:
    first = plan(wanted, [], CAPACITY)
    index = data.draw(st.integers(0, len(wanted) - 1))
    changed = dataclasses.replace(wanted[index], fingerprint="changed")
    second = plan([*wanted[:index], changed, *wanted[index + 1 :]], _made([], first), CAPACITY)
    (unit,) = second.make
    assert second.stale == (unit.part,)
    assert _ids([unit]) == [_ids(first.make)[unit.part]]


@given(wanted=_manifests.filter(bool), data=st.data())
def test_one_clip_that_left_touches_one_part(wanted: list[Wanted], data: st.DataObject) -> None:
    records = _made([], plan(wanted, [], CAPACITY))
    index = data.draw(st.integers(0, len(wanted) - 1))
    second = plan([*wanted[:index], *wanted[index + 1 :]], records, CAPACITY)
    assert len(second.stale) == 1
    assert [unit.part for unit in second.make] in ([], list(second.stale))


def test_an_empty_folder_is_packed_in_manifest_order() -> None:
    one = plan([_wanted("a", 6), _wanted("b", 4), _wanted("c", 5), _wanted("d", 6)], [], CAPACITY)
    assert [unit.part for unit in one.make] == [0, 1, 2]
    assert _ids(one.make) == [["a", "b"], ["c"], ["d"]]


def test_new_clips_get_new_parts_behind_the_old() -> None:
    old = [_wanted(name, 4) for name in "bdf"]
    records = _made([], plan(old, [], CAPACITY))
    one = plan([_wanted(name, 4) for name in "abcdef"], records, CAPACITY)
    assert one.keep == tuple(records) and one.stale == ()
    assert {unit.part: ids for unit, ids in zip(one.make, _ids(one.make), strict=True)} == {
        2: ["a", "c"],
        3: ["e"],
    }


def test_a_part_that_outgrew_its_capacity_gives_its_last_clips_up() -> None:
    records = _made([], plan([_wanted("a", 5), _wanted("b", 5), _wanted("c", 5)], [], CAPACITY))
    one = plan([_wanted("a", 6, "2"), _wanted("b", 5), _wanted("c", 5)], records, CAPACITY)
    assert [(unit.part, [c.id for c in unit.clips]) for unit in one.make] == [(0, ["a"]), (2, ["b"])]
    assert one.stale == (0,) and one.remove == ()


def test_a_part_whose_clips_all_left_is_removed() -> None:
    records = _made([], plan([_wanted("a", 9), _wanted("b", 9)], [], CAPACITY))
    one = plan([_wanted("b", 9)], records, CAPACITY)
    assert (one.make, one.stale, one.remove) == ((), (0,), (0,))


def test_failed_clips_are_tried_again_only_when_asked() -> None:
    wanted = [_wanted("a", 9), _wanted("b", 9)]
    records = [_record(unit, failed="b") for unit in plan(wanted, [], CAPACITY).make]
    assert plan(wanted, records, CAPACITY).make == ()
    again = plan(wanted, records, CAPACITY, retry_failed=True)
    assert _ids(again.make) == [["b"]] and again.stale == (1,)


def test_a_clip_heavier_than_a_part_fails() -> None:
    with pytest.raises(HarcacheError, match="clip 'a' has 11 rows, a part takes 10: raise shard_rows"):
        plan([_wanted("a", 11)], [], CAPACITY)


def test_a_part_of_other_rules_is_made_again_and_either_fingerprint_counts() -> None:
    clips = [_wanted(name) for name in ("a", "b")]
    [unit] = plan(clips, (), CAPACITY, rules=2).make
    record = dataclasses.replace(_record(unit), rules=2)
    assert plan(clips, [record], CAPACITY, rules=2).keep == (record,)
    for rules in (0, 1, 3):
        assert plan(clips, [record], CAPACITY, rules=rules).make == (unit,)
    changed = dataclasses.replace(record.outcomes[0], fingerprint="other")
    record = dataclasses.replace(record, outcomes=(changed, record.outcomes[1]))
    assert plan(clips, [record], CAPACITY, rules=2).make == (unit,)
    either = [dataclasses.replace(one, alternative="other") for one in clips]
    assert plan(either, [record], CAPACITY, rules=2).keep == (record,)

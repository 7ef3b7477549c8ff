"""Parts are made once, by clip and by part, and every clip ends in one way that is written down."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harcache.pipeline.base.errors import HarcacheError, StandstillError
from harcache.pipeline.base.files import partial_path
from harcache.pipeline.clips import Clip, read_manifest, write_manifest
from harcache.pipeline.params import DatasetParams
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.outcomes import Counts, read_counts, read_failures
from harcache.pipeline.work.parts import Outcome, read_records
from harcache.pipeline.work.plan import Unit, Wanted
from harcache.stages import crop, detect, heatmap, pose, rgb
from harcache.stages.shared.rates import Timer, rate_file
from harcache.stages.shared.units import (
    Parts,
    Unasked,
    all_outcomes,
    build_parts,
    finish_stage,
    inputs_from,
    part_file,
    parts_of,
    process_clips,
    publish_part,
)
from harcache.stages.shared.workspace import Workspace

_CAPACITY = 3


@dataclass(frozen=True)
class _Context:
    folder: Path
    bad: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()


def _work(clip: Clip, context: _Context) -> int:
    if clip.id in context.broken:
        raise ZeroDivisionError("a defect")
    if clip.id in context.bad:
        raise HarcacheError(f"{clip.video} is bad; mend it")
    return clip.frames


def _process(unit: Unit, context: _Context) -> Report:
    results, outcomes = process_clips(unit, lambda clip: _work(clip, context), length=int)
    final = part_file(context.folder, unit.part)
    partial_path(final).write_text(json.dumps(results))
    return publish_part(context.folder, context.folder, unit, outcomes, {partial_path(final): final}, Timer())


def _clips(count: int) -> list[Clip]:
    return [Clip(f"c{i}", f"c{i}.mp4", 0, 5 + i, 24, 32, 25.0, 1, 1, f"d{i}") for i in range(count)]


def _build(
    workspace: Workspace, clips: Sequence[Clip], bad: Sequence[str] = (), broken: Sequence[str] = ()
) -> Counts:
    """A stage whose result is how many frames a clip has."""
    folder = workspace.detections
    context = _Context(folder, frozenset(bad), frozenset(broken))
    wanted = [Wanted(clip, clip.fingerprint) for clip in clips]
    with Engine(workers=0) as engine:
        parts = Parts("count", folder, folder, wanted, _CAPACITY)
        records = build_parts(parts, _process, context, engine, workspace.retry_failed)
    return finish_stage("count", workspace, all_outcomes(records))


def _stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def _remade(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in after if after[name] != before.get(name)}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return replace(Workspace.under(tmp_path, "small", tmp_path / "videos"), max_failed=1.0)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 9), bad=st.sets(st.integers(0, 8)))
def test_every_clip_ends_in_exactly_one_way(
    tmp_path_factory: pytest.TempPathFactory, count: int, bad: set[int]
) -> None:
    project = tmp_path_factory.mktemp("project")
    workspace = replace(Workspace.under(project, "small", project), max_failed=1.0)
    clips = _clips(count)
    failing = sorted(f"c{i}" for i in bad if i < count)
    counts = Counts(count - len(failing), 0, len(failing))
    if counts.ok:
        assert _build(workspace, clips, failing) == counts
    else:
        with pytest.raises(HarcacheError, match=f"count: none of {count} clips can be used"):
            _build(workspace, clips, failing)
    assert Counter(o.id for o in all_outcomes(read_records(workspace.detections))) == Counter(
        c.id for c in clips
    )
    listed = read_failures(workspace.failures("count"))
    assert listed == [(name, "failed", f"{name}.mp4 is bad; mend it") for name in failing]
    assert read_counts(workspace.counts("count")) == counts


def test_one_bad_clip_stops_no_other_of_its_part(workspace: Workspace) -> None:
    _build(workspace, _clips(3), bad=["c1"])
    assert json.loads(part_file(workspace.detections, 0).read_text()) == {"c0": 5, "c2": 7}
    outcomes = all_outcomes(read_records(workspace.detections))
    assert [(o.status, o.start, o.length) for o in outcomes] == [("ok", 0, 5), ("failed", 0, 0), ("ok", 5, 7)]


def test_clips_that_were_given_up_fail_with_that_reason_and_nobody_looks_at_them(tmp_path: Path) -> None:
    clips = tuple(_clips(3))
    unit = Unit(0, clips, ("1", "2", "3"), given_up=(("c1", "it hangs"),))
    report = _process(unit, _Context(tmp_path, broken=frozenset(["c1"])))
    assert (report.ok, report.failed) == (2, 1)
    outcomes = all_outcomes(read_records(tmp_path))
    assert [(o.status, o.reason, o.start) for o in outcomes] == [
        ("ok", "", 0), ("failed", "it hangs", 0), ("ok", "", 5)
    ]  # fmt: skip


def test_a_trial_does_all_and_leaves_nothing(tmp_path: Path) -> None:
    unit = Unit(0, tuple(_clips(3)), ("1", "2", "3"), trial=True)
    assert _process(unit, _Context(tmp_path, bad=frozenset(["c1"]))).failed == 1
    assert not list(tmp_path.iterdir())


def test_what_all_clips_would_meet_is_no_failure_of_one(tmp_path: Path) -> None:
    def work(clip: Clip) -> int:
        raise StandstillError("no space left")

    with pytest.raises(StandstillError, match="no space left"):
        process_clips(Unit(0, tuple(_clips(2)), ("1", "2")), work)


def test_a_defect_stops_its_part_alone_and_the_next_run_makes_just_that(workspace: Workspace) -> None:
    with pytest.raises(
        HarcacheError, match=r"1 of 3 parts .* part 1 \(clips c3, c4, c5\): ZeroDivisionError"
    ):
        _build(workspace, _clips(9), broken=["c4"])
    before = _stamps(workspace.detections)
    assert _build(workspace, _clips(9)) == Counts(9, 0, 0)
    assert _remade(before, _stamps(workspace.detections)) == {"part-00001.h5", "part-00001.json"}


def test_a_second_run_does_nothing(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    _build(workspace, _clips(5), bad=["c4"])
    before = _stamps(workspace.detections)
    capsys.readouterr()
    assert _build(workspace, _clips(5)) == Counts(4, 0, 1)
    assert _stamps(workspace.detections) == before
    assert capsys.readouterr().out.startswith("count: nothing to do, 5 clips are there\n")


def test_a_changed_clip_remakes_its_part_alone(workspace: Workspace) -> None:
    clips = _clips(9)
    _build(workspace, clips)
    before = _stamps(workspace.detections)
    clips[4] = replace(clips[4], end=50)
    _build(workspace, clips)
    assert _remade(before, _stamps(workspace.detections)) == {"part-00001.h5", "part-00001.json"}
    assert json.loads(part_file(workspace.detections, 1).read_text())["c4"] == 50


def test_a_clip_that_left_remakes_its_part_alone(workspace: Workspace) -> None:
    clips = _clips(9)
    _build(workspace, clips)
    before = _stamps(workspace.detections)
    assert _build(workspace, clips[:4] + clips[5:]) == Counts(8, 0, 0)
    assert _remade(before, _stamps(workspace.detections)) == {"part-00001.h5", "part-00001.json"}
    assert json.loads(part_file(workspace.detections, 1).read_text()) == {"c3": 8, "c5": 10}


def test_a_part_without_clips_is_removed(workspace: Workspace) -> None:
    _build(workspace, _clips(9))
    before = _stamps(workspace.detections)
    assert _build(workspace, _clips(6)) == Counts(6, 0, 0)
    after = _stamps(workspace.detections)
    assert _remade(before, after) == set()
    assert before.keys() - after.keys() == {"part-00002.h5", "part-00002.json"}


def test_new_clips_make_new_parts_alone(workspace: Workspace) -> None:
    _build(workspace, _clips(6))
    before = _stamps(workspace.detections)
    assert _build(workspace, _clips(8)) == Counts(8, 0, 0)
    assert _remade(before, _stamps(workspace.detections)) == {"part-00002.h5", "part-00002.json"}


def test_what_a_killed_run_left_half_written_is_swept_up(workspace: Workspace) -> None:
    folder = workspace.detections
    _build(workspace, _clips(3))
    left = [folder / "part-00007.h5.partial", folder / "within" / "zarr.json.0a1b.partial"]
    left[1].parent.mkdir()
    for path in left:
        path.write_bytes(b"half")
    _build(workspace, _clips(3))
    assert not any(path.exists() for path in left)
    assert part_file(folder, 0).is_file()


def test_a_lost_file_is_made_again(workspace: Workspace) -> None:
    _build(workspace, _clips(6))
    part_file(workspace.detections, 1).unlink()
    before = _stamps(workspace.detections)
    assert _build(workspace, _clips(6)) == Counts(6, 0, 0)
    assert _remade(before, _stamps(workspace.detections)) == {"part-00001.h5", "part-00001.json"}


def test_failed_clips_are_tried_again_only_when_asked(workspace: Workspace) -> None:
    _build(workspace, _clips(6), bad=["c1"])
    before = _stamps(workspace.detections)
    assert _build(replace(workspace, retry_failed=True), _clips(6)) == Counts(6, 0, 0)
    assert _remade(before, _stamps(workspace.detections)) == {"part-00000.h5", "part-00000.json"}


def test_too_many_failures_are_an_error_after_everything_is_written(workspace: Workspace) -> None:
    strict = replace(workspace, max_failed=0.2)
    with pytest.raises(
        HarcacheError, match=r"count: 2 of 9 failed, more than 20\.0%; first c2: c2\.mp4 is bad"
    ):
        _build(strict, _clips(9), bad=["c2", "c7"])
    assert len(read_records(strict.detections)) == 3
    assert len(read_failures(strict.failures("count"))) == 2


def test_a_stage_without_one_usable_clip_is_an_error_whatever_may_fail(workspace: Workspace) -> None:
    message = (
        r"count: none of 3 clips can be used, 0 skipped and 3 failed; first c0: c0\.mp4 is bad; mend it; c1"
    )
    with pytest.raises(HarcacheError, match=message):
        _build(replace(workspace, max_failed=1, max_skipped=1), _clips(3), bad=["c0", "c1", "c2"])
    with pytest.raises(HarcacheError, match=r"count: none of 0 clips can be used.*the manifest lists none"):
        _build(workspace, [])


@pytest.mark.parametrize(
    ("option", "listed", "allowed"), [(None, 0.0, 0), (None, 0.5, 1), (0.5, 0.0, 1), (0.0, 0.5, 0)]
)
def test_clips_skipped_unasked_have_a_limit_which_an_option_sets_before_the_parameters(
    workspace: Workspace, option: float | None, listed: float, allowed: int
) -> None:
    strict = replace(workspace, max_skipped=option)
    outcomes = [Outcome("a", "ok", ""), *(Outcome(id, "skipped", "", "why") for id in ("asked", "b"))]
    finish_stage("count", strict, outcomes)
    if allowed:
        assert finish_stage("count", strict, outcomes, unasked=Unasked(["b"], listed, "Hint.")) == Counts(
            1, 2, 0
        )
        return
    with pytest.raises(
        HarcacheError,
        match=r"count: 1 of 3 skipped that nobody asked to skip, more than 0\.0%; first 'b'\. Hint\. .*"
        r"--max-skipped 0\.34, for dvc by HARCACHE_MAX_SKIPPED=0\.34, or for good by max_skipped: 0\.34",
    ):
        finish_stage("count", strict, outcomes, unasked=Unasked(["b"], listed, "Hint."))
    assert len(read_failures(strict.failures("count"))) == 2


def test_failures_up_to_the_limit_are_no_error(workspace: Workspace) -> None:
    assert _build(replace(workspace, max_failed=0.2), _clips(5), bad=["c2"]) == Counts(4, 0, 1)


def test_the_next_stage_skips_what_failed_and_says_where(workspace: Workspace) -> None:
    _build(workspace, _clips(4), bad=["c1"])
    inputs = inputs_from(workspace.detections, _clips(4))
    assert inputs.fingerprints == {c.id: c.fingerprint for c in _clips(4) if c.id != "c1"}
    assert inputs.skipped == (Outcome("c1", "skipped", "", "failed in detections"),)
    files = parts_of(workspace.detections, inputs.token)
    assert {name: path.name for name, path in files.items()} == {
        "c0": "part-00000.h5", "c1": "part-00000.h5", "c2": "part-00000.h5", "c3": "part-00001.h5"
    }  # fmt: skip


def test_the_token_changes_with_the_parts_alone(workspace: Workspace) -> None:
    clips = _clips(4)
    _build(workspace, clips)
    token = inputs_from(workspace.detections, clips).token
    assert inputs_from(workspace.detections, clips).token == token
    clips[0] = replace(clips[0], end=60)
    _build(workspace, clips)
    assert inputs_from(workspace.detections, clips).token != token


def test_a_worker_that_does_not_see_all_parts_yet_says_so_and_looks_again(workspace: Workspace) -> None:
    _build(workspace, _clips(4))
    folder = workspace.detections
    token = inputs_from(folder, _clips(4)).token
    late, hidden = folder / "part-00001.json", folder / "late"
    late.rename(hidden)
    with pytest.raises(StandstillError, match="does not hold here what the command saw in it"):
        parts_of(folder, token)
    hidden.rename(late)
    assert parts_of(folder, token).keys() == {"c0", "c1", "c2", "c3"}


def test_a_stage_that_has_not_run_is_named(workspace: Workspace) -> None:
    _build(workspace, _clips(4))
    with pytest.raises(
        HarcacheError, match=r"detections lacks 2 of 6 clips, first 'c4'; run its stage first"
    ):
        inputs_from(workspace.detections, _clips(6))


def test_a_timer_adds_up_by_kind_also_when_the_block_raises() -> None:
    timer = Timer()
    for _ in range(2):
        with pytest.raises(ValueError, match="stop"), timer("write"):
            time.sleep(0.01)
            raise ValueError("stop")
    assert list(timer.iterate("read", iter("abc"))) == ["a", "b", "c"]
    assert timer.seconds["write"] >= 0.02
    assert set(timer.seconds) == {"write", "read"}


def test_a_clip_that_fails_in_one_stage_is_skipped_by_the_later_ones_and_stops_no_other(
    own_demo: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    clips = sorted(read_manifest(own_demo.manifest), key=lambda clip: clip.frames)[:3]
    workspace = replace(own_demo, data=tmp_path / "again")
    write_manifest(workspace.manifest, clips)
    video = workspace.videos / clips[1].video
    video.write_bytes(video.read_bytes()[:2000])
    with Engine(workers=0) as engine:
        assert detect.run(params, workspace, engine) == Counts(2, 0, 1)
        for stage in (pose, crop, heatmap, rgb):
            assert stage.run(params, workspace, engine) == Counts(2, 1, 0)
            name = stage.__name__.rpartition(".")[2]
            assert [row[:2] for row in read_failures(workspace.failures(name))] == [(clips[1].id, "skipped")]


def test_how_long_parts_took_is_kept_until_others_are_made(workspace: Workspace) -> None:
    _build(workspace, _clips(4), bad=["c1"])
    kept = rate_file(workspace.data, "count")
    rate = json.loads(kept.read_text())
    assert (rate["clips"], rate["frames"]) == (4, 5 + 6 + 7 + 8)
    assert rate["seconds"] > 0
    assert rate["share"] == {"write": 1.0}
    before = kept.read_bytes()
    _build(workspace, _clips(4), bad=["c1"])
    assert kept.read_bytes() == before
    _build(workspace, _clips(5), bad=["c1"])
    assert json.loads(kept.read_text())["clips"] < 5

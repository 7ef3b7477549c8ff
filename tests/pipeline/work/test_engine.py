import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

from harcache.pipeline.base.errors import HarcacheError, StandstillError
from harcache.pipeline.base.progress import progress
from harcache.pipeline.clips import Clip
from harcache.pipeline.work.dispatch import Dispatch
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.plan import Unit


def _unit(part: int, letters: str = "abcd") -> Unit:
    names = [f"clip{part}{letter}" for letter in letters]
    clips = tuple(Clip(name, f"{name}.mp4", 0, 5, 240, 320, 30.0, 1, 1, "ff") for name in names)
    return Unit(part, clips, ("1",) * len(clips))


UNITS = [_unit(part) for part in range(6)]


def count(unit: Unit, folder: Path) -> Report:
    with (folder / f"{unit.part}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return Report(unit.part, ok=3, failed=1, frames=20, seconds={"decode": 0.5})


def fail_on_2(unit: Unit, folder: Path) -> Report:
    if unit.part == 2:
        (folder / "failed-2").open("a").write("x")
        raise ValueError("no such\nframe")
    return count(unit, folder)


def refuse(unit: Unit, folder: Path) -> Report:
    raise HarcacheError("weights demo are missing; fetch them")


def die_of_two_clips(unit: Unit, folder: Path) -> Report:
    with (folder / f"tries-{unit.part}").open("a") as file:
        file.write("x")
    given_up = dict(unit.given_up)
    clips = [clip.id for clip in unit.clips if clip.id not in given_up]
    if "clip1b" in clips:
        os._exit(3)
    if "clip3a" in clips:
        os.kill(os.getpid(), signal.SIGKILL)
    return Report(unit.part, ok=len(clips), failed=len(given_up))


def hang_with_one_clip(unit: Unit, folder: Path) -> Report:
    given_up = dict(unit.given_up)
    if any(clip.id == "clip2b" and clip.id not in given_up for clip in unit.clips):
        time.sleep(600)
    return Report(unit.part, ok=len(unit.clips) - len(given_up), failed=len(given_up))


def do_nothing(unit: Unit, context: None) -> Report:
    return Report(unit.part, ok=len(unit.clips))


def be_slow(unit: Unit, folder: Path) -> Report:
    time.sleep(0.35 * len(unit.clips))
    return count(unit, folder)


def find_no_room(unit: Unit, folder: Path) -> Report:
    if unit.part == 3:
        raise StandstillError("x.h5 could not be written: no space left on device; make room")
    time.sleep(0.1)
    return count(unit, folder)


def die_once(unit: Unit, folder: Path) -> Report:
    flag = folder / f"died-{unit.part}"
    if unit.part == 4 and not flag.exists():
        flag.touch()
        time.sleep(1)  # the others' results are fetched by then
        os._exit(3)
    return count(unit, folder)


def die_again_after_15_seconds(unit: Unit, folder: Path) -> Report:
    first = folder / "first-death"
    if first.exists():
        time.sleep(max(0.0, first.stat().st_mtime + 14.8 - time.time()))
    else:
        first.touch()
    os._exit(3)


def report_threads(unit: Unit, folder: Path) -> Report:
    return Report(unit.part, ok=int(os.environ["OMP_NUM_THREADS"]))


def sleep_long(unit: Unit, folder: Path) -> Report:
    (folder / f"{unit.part}").write_text(str(os.getpid()))
    time.sleep(600)
    return Report(unit.part, ok=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Engine]:
    with Engine(workers=2) as engine:
        yield engine


@pytest.fixture(params=["here", "dask"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(workers=0) if request.param == "here" else request.getfixturevalue("cluster")


def test_every_unit_runs_once_and_reports_in_order(engine: Engine, tmp_path: Path) -> None:
    reports = engine.run(count, UNITS[::-1], tmp_path, "detect")
    assert [report.part for report in reports] == list(range(6))
    assert reports[0] == Report(0, ok=3, failed=1, frames=20, seconds={"decode": 0.5})
    assert sorted(p.name for p in tmp_path.iterdir()) == list("012345")
    assert all(len(path.read_text().split()) == 1 for path in tmp_path.iterdir())


def test_an_exception_is_raised_by_name_after_the_others_are_done(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    message = (
        r"detect: 1 of 6 parts could not be made. part 2 \(clips clip2a, clip2b, clip2c and 1 more\): "
        r"ValueError: no such frame. The other parts are kept; run again"
    )
    with pytest.raises(HarcacheError, match=message) as caught:
        engine.run(fail_on_2, UNITS, tmp_path, "detect")
    assert isinstance(caught.value.__cause__, ValueError)
    assert {str(part) for part in (0, 1, 3, 4, 5)} < {p.name for p in tmp_path.iterdir()}
    assert (tmp_path / "failed-2").read_text() == "x"
    assert "in fail_on_2" in caplog.text


def test_an_error_meant_for_the_user_keeps_its_words_and_shows_no_traceback(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        HarcacheError, match=r"6 of 6 .*: weights demo are missing; .* and 1 more, named above"
    ):
        engine.run(refuse, UNITS, tmp_path, "pose")
    assert "Traceback" not in caplog.text and "clip5a" in caplog.text


def test_a_clip_that_kills_its_worker_whenever_it_is_tried_is_given_up_and_stops_no_other(
    cluster: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    units = [_unit(0), _unit(1, "ab"), _unit(2), _unit(3, "a")]
    reports = cluster.run(die_of_two_clips, units, tmp_path, "detect")
    assert [(report.ok, report.failed) for report in reports] == [(4, 0), (1, 1), (4, 0), (0, 1)]
    # Whole, whole again, clip by clip, and what is left; a single clip is not tried a third time.
    assert [len((tmp_path / f"tries-{part}").read_text()) for part in (1, 3)] == [5, 3]
    assert "detect: part 1 was lost with its worker process" in caplog.text
    for clip in ("clip1b", "clip3a"):
        assert f"detect: clip {clip}: its worker process died while it was tried by itself" in caplog.text


def test_a_unit_over_its_time_is_ended_and_the_clip_that_hangs_is_given_up(
    cluster: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with _beside(cluster, tmp_path, unit_timeout=1.5) as engine:
        reports = engine.run(hang_with_one_clip, [_unit(1, "ab"), _unit(2, "abc")], tmp_path, "detect")
    assert [(report.ok, report.failed) for report in reports] == [(2, 0), (2, 1)]
    assert "detect: part 2: took longer than 1.5 s (--unit-timeout), so its process was ended" in caplog.text
    assert "detect: clip clip2b: took longer than 1.5 s" in caplog.text
    assert "clip2a" not in caplog.text


def test_a_unit_that_is_only_slow_is_made_from_clips_that_each_have_the_whole_time(
    cluster: Engine, tmp_path: Path
) -> None:
    with _beside(cluster, tmp_path, unit_timeout=1) as engine:
        (report,) = engine.run(be_slow, UNITS[:1], tmp_path, "detect")
    assert report == Report(0, ok=3, failed=1, frames=20, seconds={"decode": 0.5})


def test_after_what_every_unit_would_meet_none_is_begun(engine: Engine, tmp_path: Path) -> None:
    units = [_unit(part) for part in range(200)]
    with pytest.raises(
        HarcacheError, match=r"1 of 200 parts could not be made, and \d+ were not begun\. part 3 "
    ):
        engine.run(find_no_room, units, tmp_path, "rgb")
    assert 3 <= len(list(tmp_path.iterdir())) < 30


def test_a_unit_whose_worker_dies_once_is_done_by_another_and_the_rest_is_not_done_again(
    cluster: Engine, tmp_path: Path
) -> None:
    units = [_unit(part) for part in (0, 1, 2, 3, 5, 6, 7, 4)]
    assert [report.part for report in cluster.run(die_once, units, tmp_path, "detect")] == list(range(8))
    assert (tmp_path / "died-4").exists()
    assert all(len((tmp_path / f"{part}").read_text().split()) == 1 for part in range(8))


# Takes the 15 seconds after which Dask looks whether a worker that died has come back.
@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_worker_that_dies_again_much_later_is_still_replaced(tmp_path: Path) -> None:
    with Engine(workers=1) as engine:
        with pytest.raises(HarcacheError, match="its worker process died twice"):
            engine.run(die_again_after_15_seconds, [_unit(0, "a")], tmp_path, "detect")
        time.sleep(1)
        assert len(engine.run(count, UNITS, tmp_path, "detect")) == 6


def test_of_many_units_few_are_out_at_a_time_and_nothing_is_kept_of_those_that_ended(
    cluster: Engine, tmp_path: Path
) -> None:
    cluster.run(count, UNITS[:1], tmp_path, "detect")
    assert cluster._client is not None
    taken = 0

    def units() -> Iterator[Unit]:
        nonlocal taken
        for part in range(300):
            taken += 1
            yield _unit(part)

    dispatch = Dispatch(cluster._client, do_nothing, None, "flow", None, False, None)
    for ended, (_, report) in enumerate(dispatch.run(units()), 1):
        assert isinstance(report, Report)
        assert taken - ended <= 64
    assert ended == 300
    assert not dispatch._begun and not dispatch._reports
    held = cluster._client.futures
    assert _eventually(lambda: not [key for key in held if key.startswith("flow-")])


def test_workers_share_the_cores_among_them(cluster: Engine, tmp_path: Path) -> None:
    from dask.system import CPU_COUNT

    (report,) = cluster.run(report_threads, UNITS[:1], tmp_path, "detect")
    assert report.ok == max(1, CPU_COUNT // 2)


@contextlib.contextmanager
def _beside(cluster: Engine, folder: Path, **options: Any) -> Iterator[Engine]:
    """A second engine, with the workers of the first and its key."""
    cluster.run(count, UNITS[:1], folder, "detect")
    assert cluster._client is not None
    key = cluster._client.security
    settings = {
        "ca-file": key.tls_ca_file,
        "client.cert": key.tls_client_cert,
        "client.key": key.tls_client_key,
    }
    with (
        dask.config.set({f"distributed.comm.tls.{name}": value for name, value in settings.items()}),
        Engine(scheduler=cluster._client.scheduler.address, **options) as engine,
    ):
        yield engine


def test_a_running_scheduler_is_used_by_its_address(cluster: Engine, tmp_path: Path) -> None:
    with _beside(cluster, tmp_path) as second:
        assert len(second.run(count, UNITS[1:], tmp_path, "detect")) == 5
    assert len(cluster.run(count, UNITS[:1], tmp_path, "detect")) == 1


def test_a_scheduler_that_is_not_there_fails() -> None:
    with (
        Engine(scheduler="no-protocol://nowhere:1") as engine,
        pytest.raises(HarcacheError, match="no Dask scheduler answers at no-protocol://nowhere:1"),
    ):
        engine.run(count, UNITS, None, "detect")


def test_a_run_without_units_starts_nothing() -> None:
    code = (
        "import sys; from harcache.pipeline.work.engine import Engine\n"
        "with Engine() as engine: assert engine.run(print, [], None, 'detect') == []\n"
        "assert not {'dask', 'distributed', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_negative_number_of_workers_fails() -> None:
    with pytest.raises(HarcacheError, match="workers is -1: expected 0"):
        Engine(workers=-1)


_ORPHAN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tests.pipeline.work.test_engine as t
if __name__ == "__main__":
    with t.Engine(workers=1) as engine:
        engine.run(t.sleep_long, t.UNITS[:1], Path(sys.argv[2]), "detect")
"""


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(_ORPHAN)
    command = [sys.executable, str(script), str(Path(__file__).parents[3]), str(tmp_path)]
    with subprocess.Popen(command) as main:
        worker = int(_eventually(lambda: (tmp_path / "0").read_text() if (tmp_path / "0").exists() else ""))
        main.kill()
    assert _eventually(lambda: not _is_running(worker))


def test_ctrl_c_reaches_the_workers_too_and_prints_nothing_of_theirs(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(_ORPHAN)
    command = [sys.executable, str(script), str(Path(__file__).parents[3]), str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as main:
        worker = int(_eventually(lambda: (tmp_path / "0").read_text() if (tmp_path / "0").exists() else ""))
        os.killpg(main.pid, signal.SIGINT)
        told = main.communicate(timeout=60)[1]
    assert told.count("Traceback") == told.count("KeyboardInterrupt\n") == 1
    assert not _is_running(worker)


def _eventually(condition: Callable[[], Any]) -> Any:
    """Return the first true value of the condition, or its last one after two minutes on a busy machine."""
    deadline = time.monotonic() + 120
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def _is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_progress_is_a_line_on_stderr_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(10, "detect", done=4) as display:
        display.advance(5, failed=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("detect: 9/10 clips, ") and err.endswith(", 2 failed\n")


def test_a_loop_that_does_nothing_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(10, "detect", done=10):
        logging.getLogger(__name__).debug("nothing to do")
    assert capsys.readouterr().err == ""

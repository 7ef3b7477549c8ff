"""Builds that are killed, meet a full disk or each other: nothing is lost, and nothing half-made counts."""

import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from harcache.pipeline.datasets.demo import DemoSpec, generate_demo
from harcache.pipeline.work.parts import read_records, verify_files
from tests import projects
from tests.projects import EXTRACTION, RECORDS

# Builds with the real networks, some by the real command, which loads PyTorch for seconds.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_KILLS = 50


class _Builder:
    """Has builds run by tests/fault_builds.py, one at a time."""

    def __init__(self, project: Path) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.fault_builds", str(project / "params.yaml")],
            cwd=projects.ROOT,
            env=projects.environment(project, OMP_NUM_THREADS="1", PYTHONPATH=str(projects.ROOT)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == "ready"
        self._group = 0

    def begin(self, folder: Path, limit: int = -1) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(f"{folder} {limit}\n")
        self._server.stdin.flush()
        self._group = int(self._read().removeprefix("begun "))

    def lines(self) -> Iterator[str]:
        """Give the stages as they begin, then "ended STATUS"."""
        line = ""
        while not line.startswith("ended"):
            line = self._read()
            yield line

    def build(self, folder: Path, limit: int = -1) -> int:
        """Build to the end and return the exit status."""
        self.begin(folder, limit)
        *_, last = self.lines()
        return int(last.removeprefix("ended "))

    def kill(self, folder: Path, stage: str, seconds: float) -> str | None:
        """Kill a build so long after a stage began; return the stage it was in then, None if it was over."""
        self.begin(folder)
        lines = self.lines()
        current = next(line for line in lines if line == stage)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._group, signal.SIGKILL)
        *begun, last = lines
        assert last in ("ended 0", f"ended {-signal.SIGKILL}")
        return None if last == "ended 0" else [current, *begun][-1]

    def stop(self) -> None:
        self._server.communicate()

    def _read(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the process that builds ended by itself"
        return line.strip()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of 34 clips of two frames, which make two parts of boxes and of poses, and three shards."""
    root = tmp_path_factory.mktemp("faults")
    generate_demo(root / "demo", DemoSpec(performers=(1,), cameras=1, actions=(5, 6)), workers=1)
    content = projects.tiny_params()
    content["datasets"]["demo"]["index"] = {"layout": "folder"}
    content["datasets"]["demo"]["detect"]["image_size"] = 128
    content["datasets"]["demo"]["heatmap"] |= {"size": 16, "shard_rows": 30}
    content["datasets"]["demo"]["rgb"] |= {"size": 32, "shard_rows": 30}
    project = projects.new_project(root / "original", content)
    projects.cut_videos(root / "demo", project / "videos" / "demo", count=34, frames=2)
    projects.commit_all(project)
    return project


@pytest.fixture(scope="module")
def builder(original: Path) -> Iterator[_Builder]:
    builder = _Builder(original)
    yield builder
    builder.stop()


@pytest.fixture(scope="module")
def seconds(original: Path, builder: _Builder) -> dict[str, float]:
    """How long each stage took in a build of ``original`` that nothing disturbed."""
    builder.begin(original)
    begun = [(line, time.monotonic()) for line in builder.lines()]
    assert begun[-1][0] == "ended 0", (original / "log").read_text()
    return {stage: after - before for (stage, before), (_, after) in itertools.pairwise(begun)}


@pytest.fixture(scope="module")
def whole(original: Path, seconds: dict[str, float]) -> dict[str, str]:
    """Digest of every file of a build that nothing disturbed."""
    found = projects.digests(original / "data" / "demo")
    assert {"detections/part-00001.h5", "poses/part-00001.h5", "crops.csv", "probes.jsonl"} < found.keys()
    assert sum(name.startswith("rgb.zarr/frames/c.") for name in found) == 3
    return found


@pytest.fixture
def unbuilt(original: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes the project anew, each time without any data."""

    def make() -> Path:
        shutil.rmtree(tmp_path / "project", ignore_errors=True)
        # The videos' times are in the manifest; copies keep them.
        return shutil.copytree(original, tmp_path / "project", ignore=shutil.ignore_patterns("data"))

    return make


@pytest.fixture(scope="module")
def otherwise_built(original: Path, builder: _Builder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a build with smaller shards."""
    project = tmp_path_factory.mktemp("otherwise") / "project"
    shutil.copytree(original, project)
    content = yaml.safe_load((project / "params.yaml").read_text())
    for store in ("heatmap", "rgb"):
        content["datasets"]["demo"][store]["shard_rows"] = 20
    projects.write_params(project, content)
    assert builder.build(project) == 0, (project / "log").read_text()
    return project / "data"


def test_builds_killed_at_50_moments_end_in_the_same_bytes_as_one_that_was_not(
    unbuilt: Callable[[], Path],
    otherwise_built: Path,
    builder: _Builder,
    seconds: dict[str, float],
    whole: dict[str, str],
) -> None:
    moments = random.Random(0)
    killed: Counter[str] = Counter()
    beginnings = itertools.cycle([None, None, otherwise_built])
    while killed.total() < _KILLS:
        project = unbuilt()
        # Every third build has to replace stores of other parameters.
        if there := next(beginnings):
            shutil.copytree(there, project / "data")
        # Once in each stage, whether it takes seconds or a moment, and then to the end.
        for stage in EXTRACTION:
            hit = builder.kill(project, stage, moments.random() * seconds[stage])
            killed += Counter([hit] if hit else [])
        assert builder.build(project) == 0, (project / "log").read_text()
        assert projects.digests(project / "data" / "demo") == whole
    assert killed.keys() == set(EXTRACTION)


def test_where_there_is_no_room_the_file_is_named_and_with_room_the_build_goes_on(
    unbuilt: Callable[[], Path], builder: _Builder, whole: dict[str, str]
) -> None:
    project = unbuilt()
    data = project / "data" / "demo"
    refused = []
    limit = 250
    while builder.build(project, limit):
        log = (project / "log").read_text()
        found = re.search(r"Error: .*data/demo/(\S+) could not be written: file too large; make room.*$", log)
        assert found and "Traceback" not in log, log
        name = found[1].removesuffix(".partial")
        # All but the one file that grows line by line are whole or not there.
        assert name == "probes.jsonl" or not (data / name).is_file()
        assert all(
            verify_files(data / name, record, checksums=True)
            for name, records in RECORDS.items()
            for record in read_records(data / records)
        )
        refused.append(name)
        limit = limit * 4 // 3
    assert projects.digests(data) == whole
    for kind in ("probes.jsonl", "detections/", "poses/", "rgb.zarr/frames/"):
        assert any(name.startswith(kind) for name in refused), (kind, refused)


def _holder(project: Path, command: str, running: subprocess.Popen[str]) -> int:
    """Wait until the command holds the dataset and return its process id."""
    lock = project / "data" / "demo" / ".lock"
    wanted = re.compile(rf"process (\d+) on \S+ \({command}\)")
    while not (lock.is_file() and (found := wanted.match(lock.read_text()))):
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    return int(found[1])


def _begin(project: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=project,
        env=projects.environment(project, **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _working_in(project: Path) -> list[int]:
    """The processes that run in the project's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(project) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def _wait_until(condition: Callable[[], bool]) -> None:
    # Long, since loading networks takes a busy machine more than a minute.
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end, "waited four minutes in vain"
        time.sleep(0.05)


@pytest.mark.parametrize("whole_tree", [True, False], ids=["and all workers", "and not its workers"])
def test_a_command_killed_while_dask_works_leaves_no_process_and_no_other_bytes(
    whole_tree: bool, unbuilt: Callable[[], Path], builder: _Builder, whole: dict[str, str]
) -> None:
    project = unbuilt()
    builder.kill(project, "detect", 0)
    running = _begin(project, "harcache", "detect", "demo", HARCACHE_WORKERS="2")
    detections = project / "data" / "demo" / "detections"
    _wait_until(lambda: running.poll() is not None or bool(list(detections.glob("part-*"))))
    assert running.poll() is None, running.communicate()
    (os.killpg if whole_tree else os.kill)(running.pid, signal.SIGKILL)
    running.communicate()
    _wait_until(lambda: not _working_in(project))
    assert builder.build(project) == 0, (project / "log").read_text()
    assert projects.digests(project / "data" / "demo") == whole


def test_a_second_command_says_who_holds_the_dataset_and_a_killed_one_holds_it_no_more(
    unbuilt: Callable[[], Path],
) -> None:
    project = unbuilt()
    assert projects.run(project, "harcache", "index", "demo").returncode == 0
    first = _begin(project, "harcache", "detect", "demo")
    holder = _holder(project, "harcache detect demo", first)
    os.kill(holder, signal.SIGSTOP)
    second = projects.run(project, "harcache", "index", "demo")
    assert second.returncode == 1
    assert re.fullmatch(
        rf"Error: data/demo is in use by process {holder} on \S+ \(harcache detect demo\); "
        r"wait until it ends, or stop it, and run again\n",
        second.stderr,
    )
    os.kill(holder, signal.SIGKILL)
    first.communicate()
    assert projects.run(project, "harcache", "index", "demo").returncode == 0


def test_a_command_ends_with_the_dvc_that_runs_it(unbuilt: Callable[[], Path]) -> None:
    project = unbuilt()
    # The shell that DVC takes where nothing else is set; some kinds of it stay between DVC and the command.
    running = _begin(project, "dvc", "repro", "detect@demo", SHELL="/bin/sh")
    holder = _holder(project, "harcache detect demo", running)
    # Stopped, it can't end by itself.
    os.kill(holder, signal.SIGSTOP)
    assert psutil.Process(holder).cwd() == str(project)
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    _wait_until(lambda: not psutil.pid_exists(holder))
    assert _working_in(project) == []

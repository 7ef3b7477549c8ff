"""Builds on a real Dask scheduler whose workers are killed, stopped and kept waiting: no byte is another."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from distributed import Client

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip, read_manifest
from harcache.pipeline.datasets.demo import DemoSpec, generate_demo
from harcache.pipeline.params import DatasetParams, load_params
from harcache.pipeline.video.frames import clip_frames
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.outcomes import Counts, read_failures
from harcache.pipeline.work.plan import Unit
from harcache.stages import detect, index, pose, rgb
from harcache.stages.shared.workspace import Workspace
from tests import projects
from tests.footage import film

# A scheduler and workers of their own process trees, which take seconds to start.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_SECONDS_TO_LIVE = 10  # without a heartbeat; Dask looks as often, so a stopped worker has at most twice that
_WORKER = ("--nthreads", "1", "--memory-limit", "0", "--no-dashboard", "--death-timeout", "60")


@contextmanager
def _dask(folder: Path, workers: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a scheduler and workers, with their working folder elsewhere; give its address and process."""
    program = str(Path(sys.executable).with_name("dask"))
    own = {
        "PYTHONPATH": str(projects.ROOT),
        "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": f"{_SECONDS_TO_LIVE}s",
        "DASK_TEMPORARY_DIRECTORY": str(folder),
    }
    file = folder / "scheduler.json"
    commands = [["scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]]
    commands += [["worker", *_WORKER] for _ in range(workers)]
    with (folder / "log").open("w") as log:
        running = [
            subprocess.Popen(
                [program, *command, "--scheduler-file", str(file)],
                cwd=folder,
                env=os.environ | own,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            for command in commands
        ]
        try:
            yield _address(file), running[0]
        finally:
            for process in running:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _address(file: Path) -> str:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if file.is_file() and (found := re.search(r'"address": "(\S+)"', file.read_text())):
            return found[1]
        time.sleep(0.05)
    raise AssertionError((file.parent / "log").read_text())


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with two workers."""
    with _dask(tmp_path_factory.mktemp("dask"), workers=2) as (address, _):
        yield address


@contextmanager
def _worker_that_gets(signal_number: int, stage: str, scheduler: str) -> Iterator[list[str]]:
    """While the block runs, send a signal to the first worker that is at work; its address is given then."""
    hit: list[str] = []

    def watch() -> None:
        with Client(scheduler, set_as_default=False) as client:
            at_work: list[str] = []
            while not at_work:
                time.sleep(0.05)
                at_work = [w for w, keys in client.processing().items() if any(stage in key for key in keys)]
            # Until it has told what it is at; the networks take longer to load.
            time.sleep(1)
            pids = client.run(os.getpid, workers=at_work[:1])
            os.kill(pids[at_work[0]], signal_number)
            hit.append(at_work[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield hit
    watcher.join(timeout=60)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetParams, Path]:
    """Parameters, and a project of 68 clips of two frames with figures in them: three parts a stage."""
    root = tmp_path_factory.mktemp("demo")
    generate_demo(root / "drawn", DemoSpec(performers=(1,), cameras=1, actions=(5, 6)), workers=1)
    projects.cut_videos(root / "drawn", root / "videos" / "demo", count=68, frames=2)
    content = projects.tiny_params()
    content["datasets"]["demo"]["index"] = {"layout": "folder"}
    content["datasets"]["demo"]["detect"]["image_size"] = 128
    projects.write_params(root, content)
    return load_params(root / "params.yaml", dataset="demo"), root


def test_a_cluster_that_loses_a_worker_in_each_stage_makes_the_bytes_of_one_process_and_says_what_it_lost(
    demo: tuple[DatasetParams, Path], scheduler: str, caplog: pytest.LogCaptureFixture
) -> None:
    params, root = demo
    alone, many = (Workspace.under(root / name, "demo", root / "videos") for name in ("alone", "many"))
    with Engine(workers=0) as engine:
        for stage in (index, detect, pose):
            stage.run(params, alone, engine)
    with Engine(scheduler=scheduler) as engine:
        index.run(params, many, engine)
        for stage, number in ((detect, signal.SIGKILL), (pose, signal.SIGSTOP)):
            name = stage.__name__.rpartition(".")[2]
            with _worker_that_gets(number, name, scheduler) as hit:
                assert stage.run(params, many, engine) == Counts(ok=68, skipped=0, failed=0)
            assert re.search(
                rf"{name}: part \d was lost with worker {hit[0]}; tcp://\S+ makes it", caplog.text
            )
    assert {"detections/part-00002.h5", "poses/part-00002.h5"} < projects.digests(alone.data).keys()
    assert projects.digests(many.data) == projects.digests(alone.data)


_PROCESS = rgb.process
_HANGS = Path("hangs")  # in the project's folder; holds the name of the video whose decoder does


def process_with_a_decoder_that_hangs(unit: Unit, context: Any) -> Report:
    """The stage's own work, but for one video as long as the file is there."""

    def read(videos: Path, clip: Clip) -> Iterator[np.ndarray]:
        while _HANGS.exists() and Path(clip.video).name == _HANGS.read_text():
            time.sleep(0.1)
        return clip_frames(videos, clip)

    with mock.patch.object(rgb, "clip_frames", read):
        return _PROCESS(unit, context)


class _Footage:
    """Six clips in three shards, whose frames are to be stored again: one video hangs for now."""

    def __init__(self, params: DatasetParams, project: Path) -> None:
        self.params, workspace = film(project, params)
        # As commands have it: relative to the folder that they run in.
        self.workspace = replace(Workspace.under(Path(), "small", Path("videos")), max_failed=1.0)
        self.whole = projects.digests(workspace.rgb)
        shutil.rmtree(workspace.rgb)
        clip = read_manifest(workspace.manifest)[3]
        self.hanging = clip.id
        _HANGS.write_text(Path(clip.video).name)

    def build(self, engine: Engine, retry_failed: bool = False) -> Counts:
        with engine:
            return rgb.run(self.params, replace(self.workspace, retry_failed=retry_failed), engine)


@pytest.fixture
def footage(demo: tuple[DatasetParams, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Footage:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rgb, "process", process_with_a_decoder_that_hangs)
    return _Footage(demo[0], tmp_path)


def test_a_clip_that_hangs_is_named_within_its_time_and_the_rest_is_done(
    footage: _Footage, scheduler: str
) -> None:
    assert footage.build(Engine(scheduler=scheduler, unit_timeout=3)) == Counts(ok=5, skipped=0, failed=1)
    ((name, status, reason),) = read_failures(footage.workspace.failures("rgb"))
    assert (name, status) == (footage.hanging, "failed")
    assert reason.startswith("took longer than 3 s (--unit-timeout), so its process was ended; mend")
    _HANGS.unlink()
    again = footage.build(Engine(workers=0), retry_failed=True)
    assert again == Counts(ok=6, skipped=0, failed=0)
    assert projects.digests(footage.workspace.rgb) == footage.whole


def test_a_scheduler_that_is_killed_is_one_clear_error_and_the_next_run_goes_on(
    footage: _Footage, tmp_path: Path
) -> None:
    records = footage.workspace.rgb / "records"

    def kill(scheduler: subprocess.Popen[bytes]) -> None:
        while len(list(records.glob("part-*.json"))) < 2:
            time.sleep(0.05)
        scheduler.kill()

    folder = tmp_path / "dask"
    folder.mkdir()
    with _dask(folder, workers=2) as (address, scheduler):
        threading.Thread(target=kill, args=[scheduler], daemon=True).start()
        message = (
            "rgb: the connection to the Dask scheduler is lost; what was finished is kept: start .* again$"
        )
        with pytest.raises(HarcacheError, match=message):
            footage.build(Engine(scheduler=address))
    kept = projects.files(records)
    _HANGS.unlink()
    assert footage.build(Engine(workers=0)) == Counts(ok=6, skipped=0, failed=0)
    assert kept.items() < projects.files(records).items()
    assert projects.digests(footage.workspace.rgb) == footage.whole

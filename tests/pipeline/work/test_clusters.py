"""Where workers come from, as far as it can be seen on one machine without GPUs and without SLURM."""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import dask
import pytest
import yaml

from harcache.pipeline.base.errors import HarcacheError, StandstillError
from harcache.pipeline.clips import Clip
from harcache.pipeline.work import clusters
from harcache.pipeline.work.clusters import Site, site
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.plan import Unit

_DOCS = Path(__file__).parents[3] / "docs" / "cluster.md"


def _units(count: int) -> list[Unit]:
    clip = Clip("a", "a.mp4", 0, 5, 240, 320, 30.0, 1, 1, "ff")
    return [Unit(part, (clip,), ("1",)) for part in range(count)]


def see_gpu(unit: Unit, context: None) -> Report:
    from distributed import get_worker

    time.sleep(0.5)
    assert get_worker().state.total_resources == {"GPU": 1}
    return Report(unit.part, ok=int(os.environ["CUDA_VISIBLE_DEVICES"]))


def test_there_is_a_process_a_gpu_that_sees_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with Engine(device="cuda") as engine:
        reports = engine.run(see_gpu, _units(4), None, "detect")
    assert {report.ok for report in reports} == {5, 7}


@pytest.mark.parametrize(
    ("shown", "gpus"),
    [
        (None, ["0", "1", "2"]),
        ("5, 7", ["5", "7"]),
        ("GPU-8f2a,MIG-41c0", ["GPU-8f2a", "MIG-41c0"]),
        ("", []),
    ],
)
@pytest.mark.parametrize("workers", [None, 1, 5])
def test_workers_of_this_machine_take_turns_at_the_gpus_that_the_command_may_see(
    shown: str | None, gpus: list[str], workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    monkeypatch.setattr("distributed.SpecCluster", lambda **options: options["workers"])
    devices = clusters._visible_gpus()
    assert devices == gpus
    count, cores, memory = clusters._local_workers(workers, len(devices))
    assert count == (workers or len(gpus) or min(count, cores)) >= 1
    described = clusters._local_cluster(count, memory // count, devices, None)
    options = [described[number]["options"] for number in range(count)]  # type: ignore[index]
    assert all(one["nthreads"] == 1 and one["memory_limit"] == memory // count for one in options)
    expected = [{"CUDA_VISIBLE_DEVICES": name} for name in islice(cycle(gpus), count)]
    assert [one["env"] for one in options if "env" in one] == expected
    assert [one["resources"] for one in options if "resources" in one] == [{"GPU": 1}] * len(expected)


@pytest.mark.parametrize(
    ("device", "asked"), [("cuda", (None, True)), ("cuda:1", (1, False)), ("cpu", (None, False))]
)
def test_a_gpu_that_was_named_has_one_process_and_sees_all(
    device: str, asked: tuple[int | None, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    @contextlib.contextmanager
    def connected(count: int | None, address: str | None, gpus: bool) -> Iterator[None]:
        seen.append((count, gpus))
        raise HarcacheError("seen")
        yield

    monkeypatch.setattr("harcache.pipeline.work.engine.connected", connected)
    with Engine(device=device) as engine, pytest.raises(HarcacheError, match="seen"):
        engine.run(count_clips, _units(1), None, "detect")
    assert seen == [asked]


def test_a_worker_that_fits_works_in_the_folder_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with site() as described:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        described.enter("tcp://here")
        assert Path.cwd() == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        (
            "numpy",
            "0.9",
            r"worker tcp://b has numpy \d\S+, but this command has 0\.9; install the same there",
        ),
        (
            "no-such",
            "1.0",
            r"worker tcp://b has no no-such, but this command has 1\.0; install the same there",
        ),
    ],
)
def test_a_worker_with_other_packages_is_named(name: str, version: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(StandstillError, match=message):
        Site(str(tmp_path), str(tmp_path), ((name, version),)).enter("tcp://b")


def test_a_worker_without_the_command_s_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        StandstillError, match=r"worker tcp://b does not see the files in .*; workers need the"
    ):
        Site(str(tmp_path), str(tmp_path / "witness"), ()).enter("tcp://b")


def _documented() -> dict[str, object]:
    text = re.search(r"```yaml\n(jobqueue:.*?)```", _DOCS.read_text(), re.DOTALL)
    assert text
    return yaml.safe_load(text[1])


def test_the_documented_configuration_asks_slurm_for_a_gpu_and_a_worker_that_offers_it() -> None:
    from dask_jobqueue import SLURMCluster

    described = dask.config.merge(dask.config.config, _documented())
    with dask.config.set(described), SLURMCluster(interface="lo") as cluster:
        script = cluster.job_script()
    for line in ("-p gpu", "--cpus-per-task=8", "--mem=32G", "-t 08:00:00", "--gres=gpu:1"):
        assert f"#SBATCH {line}\n" in script
    assert "\nexport OMP_NUM_THREADS=8\n" in script
    worker = re.search(r"-m distributed\.cli\.dask_worker tcp://\S+ .*", script)
    assert worker and "--nthreads 1 " in worker[0] and "--resources GPU=1 --lifetime 450m" in worker[0]


# It keeps a copy, as SLURM does: the script is removed as soon as it was taken.
_SBATCH = """#!/bin/sh
cp "$1" "$0.job"
setsid sh "$0.job" > "$0.log" 2>&1 &
echo "Submitted batch job $!"
"""


# The job's worker is a real one, which takes seconds to start.
@pytest.mark.slow
def test_slurm_s_jobs_do_the_units_and_are_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in (("sbatch", _SBATCH), ("scancel", '#!/bin/sh\nkill -- "-$1" && touch "$0.done"\n')):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(_DOCS.parents[1]), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    job = {"cores": 1, "memory": "4GiB", "interface": "lo", "scheduler-options": {"dashboard_address": ":0"}}
    with (
        dask.config.set({f"jobqueue.slurm.{name}": value for name, value in job.items()}),
        Engine(workers=1, scheduler="slurm") as engine,
    ):
        assert len(engine.run(count_clips, _units(3), None, "rgb")) == 3
    assert (tmp_path / "scancel.done").exists()


def count_clips(unit: Unit, context: None) -> Report:
    return Report(unit.part, ok=len(unit.clips))


def test_slurm_without_a_number_of_workers_fails() -> None:
    with (
        Engine(scheduler="slurm") as engine,
        pytest.raises(HarcacheError, match="--scheduler slurm needs --workers: how many workers to ask for"),
    ):
        engine.run(count_clips, _units(1), None, "rgb")


def test_slurm_jobs_that_nobody_described_fail() -> None:
    with (
        dask.config.set({"jobqueue.slurm.cores": None}),
        Engine(workers=2, scheduler="slurm") as engine,
        pytest.raises(
            HarcacheError, match=r"jobs for SLURM are not described \(.*cores.*docs/cluster\.md shows"
        ),
    ):
        engine.run(count_clips, _units(1), None, "rgb")

"""Where workers come from, as far as it can be seen on one machine without GPUs and without SLURM."""

import os
import re
import time
from pathlib import Path

import dask
import pytest
import yaml

from pipeline.clips import Clip
from pipeline.clusters import Site, site
from pipeline.engine import Engine, Report
from pipeline.errors import HarcacheError, StandstillError
from pipeline.plan import Unit

_DOCS = Path(__file__).parents[2] / "docs" / "cluster.md"


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

"""Nobody but the user who started a command gets into its Dask processes."""

import gc
import json
import os
import re
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
import yaml
from distributed import Client, Nanny, Scheduler, SpecCluster

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.work.cluster_security import new_security, scratch_folder
from harcache.pipeline.work.clusters import _slurm_cluster, connected

_needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def _ports() -> list[int]:
    """Where this process and those that it started listen."""
    this = psutil.Process()
    listening = [
        connection.laddr
        for process in (this, *this.children(recursive=True))
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.ip for address in listening} == {"127.0.0.1"}
    return sorted(address.port for address in listening)


def _got_by_another_user(ports: list[int]) -> list[str]:
    program = Path(__file__).with_name("intruder.py")
    command = [sys.executable, str(program), *map(str, ports)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    got = json.loads(done.stdout)
    assert len(got) == len(ports)
    return [one for found in got.values() for one in found]


@contextmanager
def _unsecured() -> Iterator[None]:
    """A cluster as Dask has it by itself."""
    host = {"host": "127.0.0.1"}
    scheduler = {"cls": Scheduler, "options": host | {"dashboard_address": "127.0.0.1:0"}}
    worker = {"cls": Nanny, "options": host | {"nthreads": 1}}
    with SpecCluster(scheduler=scheduler, workers={0: worker}, silence_logs=50):
        yield


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of the processes that a command starts."""
    with dask.config.set({"temporary-directory": None}), connected(1, None, gpus=False) as client:
        yield client


@pytest.mark.slow  # everything is tried at each port
@_needs_root
def test_another_user_of_the_machine_gets_into_no_process_of_a_command(client: Client) -> None:
    ports = _ports()
    # The scheduler, a worker and its nanny at least.
    assert len(ports) >= 3
    assert _got_by_another_user(ports) == []


@pytest.mark.slow  # starts processes of its own
@_needs_root
def test_another_user_gets_into_a_cluster_that_is_not_secured() -> None:
    with _unsecured():
        got = _got_by_another_user(_ports())
    assert {"tcp run as 0", "tcp run_function as 0"} <= set(got)
    assert any("sitemap.json" in one for one in got)


def test_the_dashboard_answers_at_the_printed_address_and_at_no_other(client: Client) -> None:
    pytest.importorskip("bokeh")
    link = client.dashboard_link
    with urllib.request.urlopen(link) as answer:
        assert answer.status == 200
    for other in (link.replace("/status", "x/status"), f"{link.rsplit('/', 2)[0]}/status"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(other)


def test_modules_are_imported_from_no_folder_that_another_user_may_have_laid_there(client: Client) -> None:
    paths = [place for path in (sys.path, *client.run(_import_path).values()) for place in path]
    scratch = [place for place in paths if "scratch" in place]
    assert scratch and all(place.startswith(scratch_folder()) for place in scratch)


def _import_path() -> list[str]:
    return sys.path


def test_certificates_of_dask_s_configuration_take_the_place_of_a_fresh_key(tmp_path: Path) -> None:
    assert "BEGIN CERTIFICATE" in new_security().tls_ca_file
    named = str(tmp_path / "ca.pem")
    with dask.config.set({"distributed.comm.tls.ca-file": named}):
        assert new_security().tls_ca_file == named


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with dask.config.set({"temporary-directory": None}):
        yield tmp_path / f"harcache-{os.getuid()}"


def test_scratch_files_lie_in_a_folder_that_only_the_user_can_change(temporary: Path) -> None:
    assert scratch_folder() == scratch_folder() == str(temporary)
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700


@pytest.mark.parametrize("laid", ["open to all", "another user's", "a link", "a file"])
def test_a_scratch_folder_that_another_user_laid_there_is_not_used(temporary: Path, laid: str) -> None:
    if laid == "a link":
        (temporary.parent / "elsewhere").mkdir(mode=0o700)
        temporary.symlink_to(temporary.parent / "elsewhere")
    elif laid == "a file":
        temporary.touch()
    else:
        temporary.mkdir(mode=0o777 if laid == "open to all" else 0o700)
        temporary.chmod(0o777 if laid == "open to all" else 0o700)
    if laid == "another user's":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(temporary, 65534, 65534)
    taken = Path(scratch_folder())
    assert taken != temporary and stat.S_IMODE(taken.stat().st_mode) == 0o700


def test_slurm_s_jobs_get_the_key_in_files_that_are_the_user_s_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = {"cores": 1, "memory": "4GiB", "interface": "lo", "scheduler-options": {"dashboard_address": ":0"}}
    settings = {f"jobqueue.slurm.{name}": value for name, value in job.items()}
    # The program that submits jobs is not needed to describe one; it is called once there are workers to add.
    monkeypatch.setattr("dask_jobqueue.SLURMCluster.adapt", lambda *_, **__: None)
    with dask.config.set(settings), _slurm_cluster(1, None) as cluster:
        script = cluster.job_script()
        assert cluster.scheduler_address.startswith("tls://")
        keys = list(tmp_path.iterdir())
        assert len(keys) == 3 and {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
        assert all(str(path) in script for path in keys)
    del cluster
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def _documented(language: str, beginning: str) -> str:
    """A block of the page on clusters."""
    page = (Path(__file__).parents[3] / "docs" / "cluster.md").read_text()
    found = re.search(rf"```{language}\n({beginning}.*?)```", page, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.slow  # a scheduler, a worker and two clients
def test_the_documented_key_lets_its_holders_in_and_nobody_else(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    subprocess.run(["bash", "-ec", _documented("sh", "mkdir")], env=os.environ | home, check=True, stderr=-3)
    settings = yaml.safe_load(_documented("yaml", "distributed").replace("/home/me", str(tmp_path)))
    (tmp_path / "tls.yaml").write_text(yaml.safe_dump(settings))
    program = str(Path(sys.executable).with_name("dask"))
    place = ["--protocol", "tls", "--host", "127.0.0.1", "--scheduler-file", str(tmp_path / "at.json")]
    commands = [["scheduler", "--port", "0", "--no-dashboard"], ["worker", "--nthreads", "1"]]
    own = {"DASK_CONFIG": str(tmp_path / "tls.yaml"), "DASK_TEMPORARY_DIRECTORY": str(tmp_path)}
    with ExitStack() as stack:
        for command in commands:
            process = subprocess.Popen(
                [program, *command, *place], env=os.environ | own, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        address = _address(tmp_path / "at.json")
        with _configured(settings), connected(None, address, gpus=False) as client:
            client.wait_for_workers(1, timeout=60)
            assert set(client.run(os.getuid).values()) == {os.getuid()}
        with pytest.raises(HarcacheError, match=r"does not fit tls://.*docs/cluster\.md shows"):
            stack.enter_context(connected(None, address, gpus=False))


def test_an_address_without_tls_is_refused_where_the_documented_configuration_wants_it() -> None:
    settings = {"distributed": {"comm": {"require-encryption": True}}}
    with (
        _configured(settings),
        pytest.raises(HarcacheError, match=r"does not fit tcp://\S+ \(encryption required"),
        connected(None, "tcp://127.0.0.1:9", gpus=False),
    ):
        pass


def _configured(settings: dict[str, Any]) -> AbstractContextManager[Any]:
    return dask.config.set(dask.config.merge(dask.config.config, settings))


def _address(file: Path) -> str:
    end = time.monotonic() + 60
    while not file.is_file() or not file.read_text().endswith("}"):
        assert time.monotonic() < end
        time.sleep(0.1)
    return str(json.loads(file.read_text())["address"])

"""Where a stage's workers come from: processes on this machine, a running Dask scheduler, or SLURM.

On this machine nobody need start or stop anything. Elsewhere workers are others', and found different ones:
they look at themselves before their first unit, so that a wrong one is a clear line and not a strange result.
"""

import contextlib
import logging
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harcache.pipeline.base.errors import HarcacheError, StandstillError
from harcache.pipeline.base.layers import is_there, load
from harcache.pipeline.base.progress import notice

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy.cluster import Cluster

__all__ = ["SLURM", "Site", "connected", "has_gpu", "scheduler_address", "site"]

SLURM = "slurm"
_MEMORY_PER_WORKER = 4 * 2**30  # bytes; a detector or pose network with a batch of frames needs under 3 GiB
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# What a result, or understanding each other, depends on.
_PACKAGES = ("harcache", "distributed", "numpy", "torch", "av", "mmpose", "ultralytics")


def scheduler_address(scheduler: str | None) -> str | None:
    """Return ``scheduler``, or else the address in Dask's own configuration, or None."""
    import dask

    return scheduler or dask.config.get("scheduler-address", None)


@contextlib.contextmanager
def connected(workers: int | None, address: str | None, gpus: bool) -> Iterator["Client"]:
    """Give a client of the scheduler at ``address`` ("slurm": of jobs to be asked for), or of processes here.

    ``workers``: processes to start; None is one a GPU where ``gpus``, else one a core, but not more than have
    4 GiB of memory each. Raises HarcacheError where there is no such scheduler.
    """
    # Imported here: a second that `harcache --help` and a run with nothing to do need not pay.
    import dask
    from distributed import Client

    with contextlib.ExitStack() as stack:
        if address is None:
            devices = _visible_gpus() if gpus else []
            count, cores, memory = _local_workers(workers, len(devices))
            stack.enter_context(dask.config.set(_local_settings(max(1, cores // count))))
            token = stack.enter_context(_secret_dashboard())
            cluster = stack.enter_context(_local_cluster(count, memory // count, devices, token))
            client = stack.enter_context(Client(cluster))
        elif address == SLURM:
            token = stack.enter_context(_secret_dashboard())
            client = stack.enter_context(Client(stack.enter_context(_slurm_cluster(workers, token))))
        else:
            client = stack.enter_context(_client_at(address))
        _say_where_the_dashboard_is(client)
        yield client


def _client_at(address: str) -> "Client":
    from distributed import Client

    try:
        return Client(address)
    except (TypeError, RuntimeError) as error:
        # No key for an address of TLS, or one where the configuration wants TLS and the address has none.
        raise HarcacheError(
            f"Dask's configuration does not fit {address} ({' '.join(str(error).split())}); "
            "name the scheduler's key in it, as docs/cluster.md shows"
        ) from error
    except (OSError, ValueError) as error:
        raise HarcacheError(
            f"no Dask scheduler answers at {address} ({error}); start one, or leave --scheduler out"
        ) from error


@contextlib.contextmanager
def _secret_dashboard() -> Iterator[str | None]:
    """Give the token below which the dashboard of a cluster of ours answers; None where there is no bokeh.

    In the block Dask's link names it, and scratch files lie in a folder of this user's own.
    """
    import dask

    from harcache.pipeline.work.cluster_security import new_token, scratch_folder

    settings = {"temporary-directory": scratch_folder()}
    token = None
    if is_there("bokeh"):
        token = new_token()
        link = dask.config.get("distributed.dashboard.link").removesuffix("status")
        settings["distributed.dashboard.link"] = f"{link}{token}/status"
    with dask.config.set(settings):
        yield token


def _slurm_cluster(workers: int | None, token: str | None) -> "Cluster":
    import dask

    from harcache.pipeline.work.cluster_security import PROTOCOL, GuardedScheduler, new_security

    SLURMCluster = load("dask_jobqueue").SLURMCluster
    if not workers:
        raise HarcacheError(f"--scheduler {SLURM} needs --workers: how many workers to ask for")
    # Jobs read the key in files of this folder that are its user's alone, until the cluster is closed.
    folder = dask.config.get("jobqueue.slurm.shared-temp-directory", None) or os.getcwd()
    try:
        cluster = SLURMCluster(
            scheduler_cls=partial(GuardedScheduler, token=token),
            security=new_security(),
            protocol=PROTOCOL,
            shared_temp_directory=folder,
        )
    except ValueError as error:
        raise HarcacheError(
            f"the jobs for SLURM are not described ({str(error).partition(',')[0]}); put jobqueue.slurm into "
            "Dask's configuration, as docs/cluster.md shows"
        ) from error
    # Jobs end with their time; others are asked for then.
    cluster.adapt(minimum=workers, maximum=workers)
    return cluster


def _local_cluster(count: int, memory: int, gpus: list[str], token: str | None) -> "Cluster":
    from distributed import Nanny, SpecCluster

    from harcache.pipeline.work.cluster_security import PROTOCOL, DarkWorker, GuardedScheduler, new_security

    quiet, host = logging.CRITICAL, "127.0.0.1"
    secured = {"host": host, "protocol": PROTOCOL, "security": new_security()}
    common = secured | {"nthreads": 1, "memory_limit": memory, "dashboard": False, "silence_logs": quiet}
    common |= {"worker_class": DarkWorker, "preload": ["harcache.pipeline.base.processes"]}
    own: list[dict[str, Any]] = [
        {"env": {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}, "resources": {"GPU": 1}} if gpus else {}
        for i in range(count)
    ]
    # Any free port: a second run would complain about a fixed one.
    options = secured | {"dashboard_address": f"{host}:0", "token": token}
    return SpecCluster(
        scheduler={"cls": GuardedScheduler, "options": options},
        workers={i: {"cls": Nanny, "options": common | own[i]} for i in range(count)},
        security=secured["security"],
        silence_logs=quiet,
    )


def _local_workers(workers: int | None, gpus: int) -> tuple[int, int, int]:
    """Return the number of workers, and the cores and bytes of memory that this process may use."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    fitting = max(1, min(CPU_COUNT, MEMORY_LIMIT // _MEMORY_PER_WORKER))
    return workers or gpus or fitting, CPU_COUNT, MEMORY_LIMIT


def has_gpu() -> bool:
    """Return whether PyTorch can compute on a GPU of this machine."""
    import torch

    return torch.cuda.is_available()


def _visible_gpus() -> list[str]:
    """Return the names by which CUDA may be shown one GPU each."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _local_settings(threads: int) -> dict[str, Any]:
    # The heartbeat's time to live stays at Dask's 5 minutes: less kills healthy tasks that hold the GIL.
    return {
        # Units are tried again, and alone, by who hands them out: Dask would blame waiting units too.
        "distributed.scheduler.allowed-failures": 0,
        # Nothing is handed to a worker ahead, as far as Dask can, so that few units are suspected.
        "distributed.scheduler.worker-saturation": 1.0,
        # After this time Dask drops a worker that is just then starting again, for good, and without any
        # worker a run would wait for ever.
        "distributed.deploy.lost-worker-timeout": "1000 hours",
        "distributed.nanny.pre-spawn-environ": dict.fromkeys(_THREAD_VARIABLES, threads),
        # The scheduler is in this process, and keeps what workers tell about each unit.
        "distributed.admin.low-level-log-length": 1000,
    }


def _say_where_the_dashboard_is(client: "Client") -> None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        # Asked in terms of any scheduler, which need not know this package.
        client.run_on_scheduler(metadata.version, "bokeh")
        notice(f"dashboard: {client.dashboard_link}")


@dataclass(frozen=True)
class Site:
    """Where a command runs and with what: what its workers elsewhere must have too.

    ``folder``: where relative paths begin. ``witness``: a file in it. ``versions``: of Python and packages.
    """

    folder: str
    witness: str
    versions: tuple[tuple[str, str], ...]

    def enter(self, worker: str) -> None:
        """Work in ``folder`` from now on; StandstillError when ``worker``, this process, does not fit."""
        _check(self, worker)
        if os.getcwd() != self.folder:
            os.chdir(self.folder)


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """Describe this process's place; the witness is there as long as the block lasts."""
    folder = Path.cwd()
    with tempfile.NamedTemporaryFile(prefix=".harcache-", dir=folder) as witness:
        yield Site(str(folder), witness.name, tuple(_versions()))


@lru_cache(maxsize=1)
def _check(wanted: Site, worker: str) -> None:
    found = dict(_versions())
    for name, version in wanted.versions:
        if found.get(name) != version:
            has = f"{name} {found[name]}" if name in found else f"no {name}"
            raise StandstillError(
                f"worker {worker} has {has}, but this command has {version}; install the same there"
            )
    if not Path(wanted.witness).exists():
        raise StandstillError(
            f"worker {worker} does not see the files in {wanted.folder}; "
            "workers need the same file system, mounted at the same place"
        )


def _versions() -> Iterator[tuple[str, str]]:
    yield "Python", ".".join(platform.python_version_tuple()[:2])
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            # A build for another device is the same version.
            yield name, metadata.version(name).partition("+")[0]

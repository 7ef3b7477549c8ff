"""The processes that train together, as torchrun or srun started them, joined by Lightning Fabric."""

import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning_fabric.strategies import DDPStrategy, Strategy

from harcache.pipeline.base.errors import HarcacheError

__all__ = ["launch", "processes", "processes_sharing_cores"]

_PRECISIONS: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def launch(device: str, precision: str) -> Fabric:
    """Join the processes that torchrun or srun started, or be the only one, on a device by PyTorch's name."""
    place = torch.device(device)
    local, nodes = processes()
    alone = local * nodes == 1
    strategy: str | Strategy = "auto" if alone else DDPStrategy(broadcast_buffers=False)
    # One process needs nobody, whatever job of SLURM's it runs in. Several of a job that is called "bash" or
    # "interactive", as salloc's are, Lightning would each have start all the others.
    environment = LightningEnvironment() if alone else None if _by_torchrun() else SLURMEnvironment()
    fabric = Fabric(
        accelerator="gpu" if place.type == "cuda" else "cpu",
        devices=[place.index or 0] if alone and place.type == "cuda" else local,
        num_nodes=nodes,
        strategy=strategy,
        precision=_PRECISIONS[precision],
        plugins=environment,
    )
    fabric.launch()
    return fabric


def processes() -> tuple[int, int]:
    """Return how many processes train on each machine, and on how many machines.

    Raises HarcacheError where SLURM is to start several and srun did not, for which one would wait for ever,
    or where it does not say how many to a machine.
    """
    if _by_torchrun():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    tasks = int(os.environ.get("SLURM_NTASKS", 1))
    if tasks > 1:
        if "SLURM_STEP_ID" not in os.environ:
            raise HarcacheError(
                f"this SLURM job has {tasks} tasks, but srun did not start this one; put srun before the "
                "command, or srun --ntasks=1 to train in one process"
            )
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise HarcacheError(
                f"SLURM started {tasks} tasks and does not say how many a node; give sbatch "
                "--ntasks-per-node instead of --ntasks"
            )
        return int(os.environ["SLURM_NTASKS_PER_NODE"]), int(os.environ.get("SLURM_NNODES", 1))
    return 1, 1


def processes_sharing_cores() -> int:
    """Return how many training processes share the processor cores that this one may use."""
    # srun binds each process to cores of its own, unless SLURM was set up without that.
    own = not _by_torchrun() and len(os.sched_getaffinity(0)) < int(os.environ.get("SLURM_CPUS_ON_NODE", 0))
    return 1 if own else processes()[0]


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ

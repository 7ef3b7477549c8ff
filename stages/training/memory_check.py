"""Whether a batch fits in memory, found out before training: two samples and one tell what each takes."""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from harcache.cache.streaming.dataset import Batch, ClipDataset
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import RecipeParams

__all__ = ["check_memory"]

_CGROUP = Path("/sys/fs/cgroup")
_TEMPORARY = 1.25  # peak by what backward needs; measured on the networks here it is 1.1 to 1.2


def check_memory(
    network: nn.Module,
    loss_of: Callable[[nn.Module, Batch], Tensor],
    dataset: ClipDataset,
    prepare: Callable[..., Batch],
    recipe: RecipeParams,
    processes: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
) -> None:
    """Raise HarcacheError, with the size that fits, where a process's part of a step takes too much memory.

    ``network`` stays as it is, and so do PyTorch's random generators.
    """
    trial = copy.deepcopy(network).to(device)
    sample = {name: value[None] for name, value in dataset[0].items()}

    def bytes_for(count: int) -> int:
        batch = {name: value.expand(count, *value.shape[1:]).contiguous() for name, value in sample.items()}

        def step() -> None:
            with autocast():
                loss = loss_of(trial, prepare(batch, device))
            loss.backward()

        return _peak(step, device)

    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        one, two = bytes_for(1), bytes_for(2)
    each = max(1, two - one)
    fixed = max(0, one - each)
    part = math.ceil(recipe.batch_size / processes / recipe.accumulate)
    free = _free(device)
    if fixed + part * each <= free:
        return
    fits = max(0, (free - fixed) // each)
    if fits == 0:
        raise HarcacheError(
            f"not even one sample fits in memory: it takes {_size(fixed + each)} and {_size(free)} are free; "
            "free memory, or train a smaller network"
        )
    needed = math.ceil(recipe.batch_size / processes / fits)
    raise HarcacheError(
        f"{part} samples at once take {_size(fixed + part * each)} of memory and {_size(free)} are free; "
        f"{fits} fit: set accumulate to {needed}, or batch_size to {fits * processes * recipe.accumulate}"
    )


def _peak(step: Callable[[], None], device: torch.device) -> int:
    """Return the bytes that a step takes: measured on a GPU, on the CPU those that backward needs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        step()
    return int(sum(kept.values()) * _TEMPORARY)


def _free(device: torch.device) -> int:
    """Return the bytes that a process may still take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    free = psutil.virtual_memory().available
    try:
        limit, used, stat = ((_CGROUP / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
        parts = dict(line.split() for line in stat.splitlines())
        # Pages of files count as used, but the system gives them up for whoever asks.
        kept = int(parts["inactive_file"]) + int(parts["active_file"])
        return min(free, int(limit) - int(used) + kept)
    except (OSError, ValueError, KeyError):
        return free  # no limit of a container's


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"

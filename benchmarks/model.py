"""EPAM-Net against its Conv3d form: seconds a clip, peak memory, and training on a GPU where there is one.

Memory is that of fresh processes, one a figure, since a process never gives its peak back.
"""

import resource
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor, nn
from torch.nn import functional

from harcache.benchmarks.conv3d import EPAMNet3d
from harcache.benchmarks.timing import side_by_side
from harcache.models.compiling import compiled
from harcache.models.memory import keep_freed_memory
from harcache.models.networks.epam_net import EPAMNet

__all__ = ["as_table", "make_step", "measure"]

_CLASSES = 60
_FORMS: Mapping[str, Callable[[int], nn.Module]] = {"harcache": EPAMNet, "conv3d": EPAMNet3d}
_ROUNDS = 5
_GPU_BATCH = 24  # the paper's
_GPU_ROUNDS = 20


def measure(size: int = 224) -> dict[str, float]:
    """Return what each form costs with clips of 16 frames and 48 heatmaps, both a square of ``size`` pixels.

    ``forward.<form>`` and ``train.<form>`` are seconds a clip in float32 on the CPU; ``memory.<task>.<form>``
    is the peak in bytes above a process that only holds network and clip. Where there is a GPU,
    ``gpu.<form>`` is seconds a clip of a training step in bfloat16, ``gpu.compiled`` with torch.compile.
    Heatmaps have a quarter of the height and width.
    """
    keep_freed_memory()
    results = _time_cpu(size) | _peak_memories(size)
    if torch.cuda.is_available():
        results |= time_training("cuda", _GPU_BATCH, size, _GPU_ROUNDS)
    return results


def as_table(results: Mapping[str, float]) -> str:
    """Return the results as text: both forms of each measurement and how many times less ours takes."""
    lines = []
    for task in _TASKS:
        ours, theirs = results[f"{task}.harcache"], results[f"{task}.conv3d"]
        lines.append(f"{task}: {ours:.3f} s a clip, Conv3d {theirs:.3f} s: {theirs / ours:.2f} times faster")
        ours, theirs = (results[f"memory.{task}.{form}"] / 2**20 for form in _FORMS)
        lines.append(f"{task}: {ours:.0f} MiB, Conv3d {theirs:.0f} MiB: {theirs / ours:.2f} times less")
    for name in ("harcache", "compiled"):
        if f"gpu.{name}" in results:
            ours, theirs = results[f"gpu.{name}"], results["gpu.conv3d"]
            lines.append(
                f"GPU training in bfloat16, {name}: {1 / ours:.0f} clips a second, "
                f"Conv3d {1 / theirs:.0f}: {theirs / ours:.2f} times faster"
            )
    return "\n".join(lines)


def time_training(device: str, batch: int, size: int, rounds: int) -> dict[str, float]:
    """Return the seconds a clip of a bfloat16 training step on ``device``: both forms, and ours compiled."""
    networks = {name: build(_CLASSES).to(device) for name, build in _FORMS.items()}
    clips = _draw_clips(batch, size, device)
    rivals = {name: _train(network, clips, torch.bfloat16) for name, network in networks.items()}
    rivals["compiled"] = _train(compiled(EPAMNet(_CLASSES).to(device)), clips, torch.bfloat16)
    seconds = side_by_side(rivals, rounds, warmup=3)
    return {f"gpu.{name}": value / batch for name, value in seconds.items()}


def _time_cpu(size: int) -> dict[str, float]:
    results: dict[str, float] = {}
    for task, make in _TASKS.items():
        clips = _draw_clips(1, size)
        rivals = {name: make(build(_CLASSES), clips) for name, build in _FORMS.items()}
        results |= {f"{task}.{name}": value for name, value in side_by_side(rivals, _ROUNDS).items()}
    return results


_Clips = tuple[Tensor, Tensor, Tensor]


def _draw_clips(batch: int, size: int, device: str = "cpu") -> _Clips:
    """Return RGB frames, heatmaps and labels of a batch."""
    rgb = torch.randn(batch, 3, 16, size, size, device=device)
    heatmaps = torch.rand(batch, 17, 48, size // 4, size // 4, device=device)
    return rgb, heatmaps, torch.arange(batch, device=device) % _CLASSES


def _forward(network: nn.Module, clips: _Clips) -> Callable[[], None]:
    network.eval()

    def step() -> None:
        with torch.inference_mode():
            network(*clips[:2])

    return step


def make_step(
    network: nn.Module, precision: torch.dtype = torch.float32
) -> Callable[[Tensor, Tensor, Tensor], None]:
    """Return a step of the paper's training: both losses, gradients clipped at 40, SGD with momentum.

    It takes RGB frames, heatmaps and labels; on a GPU it returns before the GPU is done.
    """
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=3e-4)

    def step(rgb: Tensor, heatmaps: Tensor, labels: Tensor) -> None:
        with torch.autocast(rgb.device.type, precision, enabled=precision != torch.float32):
            heads = network(rgb, heatmaps)
            loss = torch.stack([functional.cross_entropy(head, labels) for head in heads]).sum()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 40)
        optimiser.step()

    return step


def _train(network: nn.Module, clips: _Clips, precision: torch.dtype = torch.float32) -> Callable[[], None]:
    step = make_step(network, precision)

    def call() -> None:
        step(*clips)
        if clips[0].device.type == "cuda":
            torch.cuda.synchronize()

    return call


_TASKS: Mapping[str, Callable[[nn.Module, _Clips], Callable[[], None]]] = {
    "forward": _forward,
    "train": _train,
}


def _peak_memories(size: int) -> dict[str, float]:
    wanted = [(task, form) for task in _TASKS for form in _FORMS]
    # A server that stays small forks them: a process started by this one would inherit its peak.
    fresh = get_context("forkserver")
    fresh.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, fresh, max_tasks_per_child=1) as pool:
        peaks = pool.map(_peak_memory, *zip(*wanted, strict=True), [size] * len(wanted))
        return {f"memory.{task}.{form}": peak for (task, form), peak in zip(wanted, peaks, strict=True)}


def _peak_memory(task: str, form: str, size: int) -> int:
    """Return the bytes that two steps need at most, beyond network and clip."""
    keep_freed_memory()
    step = _TASKS[task](_FORMS[form](_CLASSES), _draw_clips(1, size))
    base = _resident()
    step()
    step()
    return _resident() - base


def _resident() -> int:
    """Return the peak of this process's resident memory in bytes; Linux counts in KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

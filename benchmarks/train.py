"""Whether training waits: EPAM-Net fed from the caches, in the released way, and from one batch that stays.

The last is as fast as the network can go, so what the others lack is their loader's doing.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from harcache.benchmarks.footage import HEATMAP_SIZE, SIGMA, Filmed, make_footage
from harcache.benchmarks.loader_rivals import Released
from harcache.benchmarks.model import make_step
from harcache.cache.clip_store import open_store
from harcache.cache.streaming.dataset import Batch, ClipDataset
from harcache.cache.streaming.decoder_processes import default_workers
from harcache.cache.streaming.input_wait import Waits, watch
from harcache.cache.streaming.loader import ClipLoader
from harcache.cache.streaming.preparation import prepare
from harcache.models import compiling
from harcache.models.memory import keep_freed_memory
from harcache.models.networks.epam_net import EPAMNet

__all__ = ["as_table", "measure"]

_CLASSES = 60
_FRAMES = 96  # a clip
_WARM_UP = {"cuda": 8, "cpu": 1}  # steps
_EPOCH = 400  # batches; more than any way trains on
_BATCHES = (96, 48, 24)  # the paper's is 24; on a GPU the largest that fits
_CPU_BATCH = 4
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def measure(
    device: str | None = None,
    precision: str = "bfloat16",
    compiled: bool = False,
    batch: int | None = None,
    clips: int = 64,
    seconds: float = 15,
    network: Callable[[int], torch.nn.Module] = EPAMNet,
) -> dict[str, Any]:
    """Film ``clips`` and train ``network`` for ``seconds`` in each way, on ``device`` (default: the GPU).

    Returns how it was set up, and ``ways``: by name samples_per_second, wait_share (of the GPU's time, on a
    GPU), memory (peak bytes on the GPU, else None), and the loader's own seconds.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cores = len(os.sched_getaffinity(0))
    cv2.setNumThreads(1)
    if place.type == "cpu":
        keep_freed_memory()
    made = network(_CLASSES).to(place)
    size = batch or _largest(make_step(made, _PRECISIONS[precision]), place)
    step = make_step(compiling.compiled(made) if compiled else made, _PRECISIONS[precision])
    with TemporaryDirectory() as name:
        filmed = make_footage(Path(name), clips, _FRAMES)
        ways: dict[str, Callable[[Waits], Iterable[Batch]]] = {
            "harcache": partial(_ours, Path(name), filmed, size, place),
            "released": lambda waits: watch(_released(filmed, size, place, cores), waits, place),
            "one_batch": lambda waits: watch(repeat(_drawn(size, place)), waits, place),
        }
        measured = {way: _train(step, batches, place, seconds) for way, batches in ways.items()}
    return {
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "cores": cores,
        "precision": precision,
        "compiled": compiled,
        "batch": size,
        "ways": measured,
    }


def as_table(results: Mapping[str, Any]) -> str:
    """Return what was measured as lines to read."""
    lines = [
        "{device}, {cores} cores, {precision}, batches of {batch}".format(**results)
        + (", compiled" if results["compiled"] else ""),
        f"{'':12}samples/s  waits  memory",
    ]
    for name, way in results["ways"].items():
        memory = "" if way["memory"] is None else f"{way['memory'] / 2**30:5.1f} GiB"
        lines.append(f"{name:12}{way['samples_per_second']:9.1f}{way['wait_share']:7.1%}  {memory}")
    ours, theirs = (results["ways"][name]["samples_per_second"] for name in ("harcache", "released"))
    return "\n".join([*lines, f"harcache / released: {ours / theirs:.1f}"])


def _train(
    step: _Step, batches: Callable[[Waits], Iterable[Batch]], place: torch.device, seconds: float
) -> dict[str, Any]:
    """Train for ``seconds`` after some steps to warm up."""
    waits = Waits()
    if place.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place)
    end, counted = float("inf"), Waits()
    for number, batch in enumerate(batches(waits)):
        step(batch["rgb"], batch["heatmaps"], batch["label"])
        if number + 1 == _WARM_UP[place.type]:
            counted, end = replace(waits), time.monotonic() + seconds
        if time.monotonic() > end and waits.steps > counted.steps + 1:
            break
    found = waits.since(counted)
    return {
        "samples_per_second": found.samples_per_second,
        "wait_share": found.share,
        "memory": torch.cuda.max_memory_allocated(place) if place.type == "cuda" else None,
        **asdict(found),
    }


def _ours(
    folder: Path, filmed: Sequence[Filmed], size: int, place: torch.device, waits: Waits
) -> Iterator[Batch]:
    dataset = ClipDataset(
        [(filmed[number % len(filmed)].id, number % _CLASSES) for number in range(size * _EPOCH)],
        rgb=open_store(folder / "rgb.zarr"),
        heatmaps=open_store(folder / "heatmaps.zarr"),
        train=True,
    )
    loader = ClipLoader(dataset, size, workers=default_workers(place), device=place)
    loader.waits = waits
    for batch in chain.from_iterable(repeat(loader)):
        yield prepare(batch, heatmap_size=HEATMAP_SIZE, sigma=SIGMA)


def _released(filmed: Sequence[Filmed], size: int, place: torch.device, cores: int) -> Iterator[Batch]:
    """PyTorch's loader with a process a core and pinned memory."""
    loader = DataLoader(
        Released(filmed, size * _EPOCH),
        size,
        num_workers=cores,
        pin_memory=place.type == "cuda",
        multiprocessing_context="fork",
    )
    for rgb, heatmaps in loader:
        batch = {"rgb": rgb, "heatmaps": heatmaps, "label": torch.arange(len(rgb)) % _CLASSES}
        yield {name: value.to(place, non_blocking=True) for name, value in batch.items()}


def _drawn(size: int, place: torch.device) -> Batch:
    return {
        "rgb": torch.randn(size, 3, 16, 224, 224, device=place),
        "heatmaps": torch.rand(size, 17, 48, HEATMAP_SIZE, HEATMAP_SIZE, device=place),
        "label": torch.arange(size, device=place) % _CLASSES,
    }


def _largest(step: _Step, place: torch.device) -> int:
    """Return the largest of the batches that fits in the GPU's memory."""
    if place.type == "cpu":
        return _CPU_BATCH
    for size in _BATCHES[:-1]:
        try:
            batch = _drawn(size, place)
            step(batch["rgb"], batch["heatmaps"], batch["label"])
            return size
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return _BATCHES[-1]

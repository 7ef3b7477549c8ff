"""How fast samples of EPAM-Net come from the stores, beside every other way to have them, in one run.

Nearly all the time is decoding, whose speed differs by machine: the ratios are what to compare.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import cv2
import numpy as np
import torch

from harcache.benchmarks import loader_rivals as rivals
from harcache.benchmarks.footage import HEATMAP_SIZE, SIGMA, Filmed, make_footage
from harcache.benchmarks.timing import side_by_side
from harcache.cache.clip_store import open_store
from harcache.cache.streaming.dataset import ClipDataset
from harcache.cache.streaming.loader import ClipLoader
from harcache.cache.streaming.preparation import prepare

__all__ = ["as_table", "measure"]

_FRAMES = 96  # a clip
_BATCH = 8
_EPOCH = 48  # samples a call, where one does not take long
_OPTIONAL = {"litdata": rivals.litdata_way, "webdataset": rivals.webdataset_way}

_RATIOS = [
    ("released", "harcache_1", "at least 10"),
    ("released", "limit", "what is in reach"),
    ("harcache_1", "limit", "at most 1.25"),
    ("harcache_1", "harcache_loader", "two processes; at least 1.8"),
    ("harcache_1", "harcache_2", "two threads"),
    ("limit", "limit_2_processes", "what the machine's cores can give"),
    ("litdata", "harcache_1", "over 1"),
    ("webdataset", "harcache_1", "over 1"),
    ("zarr_python", "harcache_1", ""),
]

_Ways = dict[str, tuple[Callable[[], object], int]]
"""What is timed: a call, and how many samples it takes."""


def measure(clips: int = 24, rounds: int = 7) -> dict[str, Any]:
    """Film ``clips`` of 96 frames and time every way to read samples of them: medians of ``rounds``.

    Returns ``ms_per_sample`` of each way, None where its package is missing; ``also_ms_per_sample``: the
    limit in two processes at once; that of the frames alone, as they are, of one colour, and in 4:2:0; RGB
    and keypoints instead of heatmaps by one thread; and what ``prepare`` adds on the GPU, or on one thread
    where there is none. And ``bytes`` of an average row.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        filmed = make_footage(folder, clips, _FRAMES)
        compared, others = _compared(folder, filmed), _others(folder, filmed)
        ways = compared | others
        seconds = side_by_side({way: call for way, (call, _) in ways.items()}, rounds)
    found = {way: 1000 * seconds[way] / samples for way, (_, samples) in ways.items()}
    return {
        "ms_per_sample": {way: found[way] for way in compared}
        | {way: None for way in _OPTIONAL if way not in compared},
        "also_ms_per_sample": {way: found[way] for way in others},
        "bytes": {
            "rgb": float(np.mean([len(row) for clip in filmed for row in clip.jpegs])),
            "heatmaps": float(np.mean([len(row) for clip in filmed for row in clip.heatmaps])),
        },
    }


def as_table(results: Mapping[str, Any]) -> str:
    """Return what was measured as lines to read, with the ratios that the loader is to reach."""
    lines = ["{rgb:.0f} bytes an RGB frame, {heatmaps:.0f} a heatmap frame".format(**results["bytes"])]
    lines += ["", f"{'':18}ms a sample  samples/s"]
    found = {**results["ms_per_sample"], **results["also_ms_per_sample"]}
    for way, milliseconds in found.items():
        if milliseconds is None:
            lines.append(f"{way:18}not installed; it comes with the extra 'bench'")
        else:
            lines.append(f"{way:18}{milliseconds:11.2f}{1000 / milliseconds:11.0f}")
    lines.append("")
    for slower, faster, aim in _RATIOS:
        if found[slower] is not None:
            lines.append(f"{slower + ' / ' + faster:30}{found[slower] / found[faster]:7.2f}  {aim}")
    return "\n".join(lines)


def _compared(folder: Path, filmed: Sequence[Filmed]) -> _Ways:
    make = partial(_dataset, folder, filmed)
    ways: _Ways = {
        "limit": (rivals.limit(filmed, make(), _EPOCH, _BATCH), _EPOCH),
        "harcache_1": (rivals.in_threads(make(), 1, _EPOCH, _BATCH), _EPOCH),
        "harcache_2": (rivals.in_threads(make(), 2, _EPOCH, _BATCH), _EPOCH),
        "harcache_loader": (_epoch(make()), _EPOCH),
        "released": (rivals.released(filmed, _BATCH, _BATCH), _BATCH),
        "zarr_python": (rivals.zarr_python(folder, filmed, 2), 2),
    }
    for name, way in _OPTIONAL.items():
        if importlib.util.find_spec(name):
            ways[name] = (way(filmed, folder / name, _EPOCH, _BATCH), _EPOCH)
    return ways


def _others(folder: Path, filmed: Sequence[Filmed]) -> _Ways:
    make = partial(_dataset, folder, filmed)

    def limit(clips: Sequence[Filmed]) -> Callable[[], object]:
        return rivals.limit(clips, make(), _EPOCH, _BATCH)

    return {
        "limit_2_processes": (rivals.twice_at_once(limit(filmed)), 2 * _EPOCH),
        "limit_rgb": (limit(rivals.frames_alone(filmed)), _EPOCH),
        "limit_rgb_flat": (limit(rivals.frames_alone(filmed, rivals.without_detail)), _EPOCH),
        "limit_rgb_420": (limit(rivals.frames_alone(filmed, rivals.with_half_chroma)), _EPOCH),
        "keypoints_1": (rivals.in_threads(make("keypoints"), 1, _EPOCH, _BATCH), _EPOCH),
        "prepare": (_prepare(make()), _BATCH),
        "prepare_keypoints": (_prepare(make("keypoints")), _BATCH),
    }


def _dataset(
    folder: Path, filmed: Sequence[Filmed], source: Literal["volume", "keypoints"] = "volume"
) -> ClipDataset:
    """Return an epoch of ``_EPOCH`` samples, however many clips there are."""
    return ClipDataset(
        [(filmed[number % len(filmed)].id, 0) for number in range(_EPOCH)],
        rgb=open_store(folder / "rgb.zarr"),
        heatmaps=open_store(folder / "heatmaps.zarr"),
        heatmap_source=source,
        train=True,
    )


def _epoch(dataset: ClipDataset) -> Callable[[], object]:
    loader = ClipLoader(dataset, _BATCH, workers=2)
    return lambda: [len(batch) for batch in loader]


def _prepare(dataset: ClipDataset) -> Callable[[], object]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = next(iter(ClipLoader(dataset, _BATCH, device=device)))

    def call() -> None:
        prepare(batch, heatmap_size=HEATMAP_SIZE, sigma=SIGMA)
        if device == "cuda":
            torch.cuda.synchronize()

    return call

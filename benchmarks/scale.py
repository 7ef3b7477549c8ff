"""What grows with the number of clips, at the size of NTU RGB+D 120 and at a sixteenth of it.

Only indices and records are real: the shards are empty files, since nothing here reads a frame.
"""

import gc
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import yaml

from harcache import cache
from harcache.benchmarks.timing import peak_memory
from harcache.cache.array_spec import ArraySpec
from harcache.cache.clip_index import IndexEntry
from harcache.cache.sampling import clip_rng
from harcache.cache.store_paths import records_dir, shard_path
from harcache.cache.store_writer import create_store, write_index
from harcache.cache.streaming.dataset import ClipDataset
from harcache.pipeline.base.files import partial_path
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.base.project import SHIPPED
from harcache.pipeline.clips import Clip, read_manifest, write_manifest
from harcache.pipeline.video.writing import write_video
from harcache.pipeline.work.parts import Outcome, publish, sound_records
from harcache.pipeline.work.plan import Wanted, plan

__all__ = ["as_table", "measure"]

_PART = 16
_ROUNDS = 3
_SHARDS = 400
_INDEXED = 16_000  # videos; about as many as Toyota Smarthome has
# Rows of a shard and arrays, as the README proposes for real data.
_STORES: Mapping[str, tuple[int, tuple[ArraySpec, ...]]] = {
    "rgb.zarr": (8192, (ArraySpec("frames", (224, 224, 3), "uint8", "jpeg"),)),
    "heatmaps.zarr": (
        65536,
        (
            ArraySpec("volume", (17, 56, 56), "uint8", "blosc"),
            ArraySpec("keypoints", (2, 17, 3), "float16", "blosc"),
        ),
    ),
}
_TITLES = {
    "open": "opening both stores",
    "sample": "sampling an epoch",
    "plan": "planning a rebuild",
}


def measure(clips: int, shards: int = _SHARDS) -> dict[str, float]:
    """Return seconds and bytes of indexing, opening, sampling and planning, and the seconds of a `dvc repro`.

    ``<task>.seconds`` and ``<task>.bytes`` (peak beyond a process that has loaded its modules) are for
    ``clips`` clips, the same with ``.part`` for a sixteenth of them; ``<task>.growth`` is the exponent
    between the two times, where 1 is linear. ``index.…`` are of the whole command, for ``index.clips`` small
    videos; ``index.again.seconds`` where nothing changed since. ``repro.seconds`` is a `dvc repro` that finds
    nothing to do but look at the videos, over stores of ``shards`` shards each.
    """
    results = {"clips": float(clips), "repro.seconds": _time_repro(shards), "repro.shards": float(shards)}
    results |= _index_costs(min(clips, _INDEXED))
    with tempfile.TemporaryDirectory() as name:
        for size, suffix in ((clips // _PART, ".part"), (clips, "")):
            folder = Path(name) / str(size)
            results[f"rows{suffix}"] = float(_simulate(folder, size))
            for task in _TASKS:
                seconds, peak = _costs(task, folder)
                results |= {f"{task}.seconds{suffix}": seconds, f"{task}.bytes{suffix}": peak}
    for task in _TASKS:
        ratio = results[f"{task}.seconds"] / results[f"{task}.seconds.part"]
        results[f"{task}.growth"] = math.log(ratio, _PART)
    return results


def as_table(results: Mapping[str, float]) -> str:
    """Return the results as text."""
    clips, rows = results["clips"], results["rows"]
    lines = [f"{clips:.0f} clips, {rows / 1e6:.1f} million rows (and {clips // _PART:.0f} clips):"]
    for task, title in _TITLES.items():
        seconds, part = results[f"{task}.seconds"], results[f"{task}.seconds.part"]
        more, more_part = (results[f"{task}.bytes{suffix}"] / 2**20 for suffix in ("", ".part"))
        lines.append(
            f"{title}: {seconds:.3f} s ({part:.3f} s), {more:.0f} MiB more memory ({more_part:.0f} MiB); "
            f"time grows as clips to the power of {results[f'{task}.growth']:.2f}"
        )
    first, again = results["index.seconds"], results["index.again.seconds"]
    whole, part_mib = (results[f"index.bytes{suffix}"] / 2**20 for suffix in ("", ".part"))
    lines.append(
        f"indexing {results['index.clips']:.0f} small videos: {first:.1f} s, again {again:.1f} s; peak "
        f"{whole:.0f} MiB ({part_mib:.0f} MiB for a sixteenth of them)"
    )
    shards = results["repro.shards"]
    lines.append(
        f"dvc repro with nothing to do, {shards:.0f} shards a store: {results['repro.seconds']:.1f} s"
    )
    return "\n".join(lines)


def _simulate(folder: Path, count: int) -> int:
    """Write a manifest, and stores with records and an index but without frames; return the rows of each."""
    lengths = np.random.default_rng(0).integers(32, 136, count).tolist()
    clips = [_clip(number, frames) for number, frames in enumerate(lengths)]
    write_manifest(folder / "manifest.csv", clips)
    for name, (shard_rows, arrays) in _STORES.items():
        _simulate_store(folder / name, clips, arrays, shard_rows)
    return sum(lengths)


def _clip(number: int, frames: int) -> Clip:
    camera, action, performer = number % 3 + 1, number // 3 % 120 + 1, number // 360 + 1
    name = f"S001C{camera:03}P{performer:03}R001A{action:03}"
    labels, splits = (("xset", action - 1), ("xsub", action - 1)), (("xset", "train"), ("xsub", "train"))
    return Clip(
        name,
        f"{name}_rgb.avi",
        0,
        frames,
        1080,
        1920,
        30.0,
        2**20,
        1,
        f"{number:032x}",
        performer,
        camera,
        1,
        1,
        labels,
        splits,
    )


def _simulate_store(path: Path, clips: list[Clip], arrays: tuple[ArraySpec, ...], shard_rows: int) -> None:
    create_store(path, arrays, shard_rows, {"dataset": "ntu120"})
    entries = []
    for unit in plan(_wanted(clips), (), shard_rows).make:
        start, outcomes = 0, []
        for clip, inputs in zip(unit.clips, unit.fingerprints, strict=True):
            outcomes.append(Outcome(clip.id, "ok", inputs, "", start, clip.frames))
            size = (clip.height, clip.width)
            entries.append(
                IndexEntry(clip.id, unit.part, start, clip.frames, range(clip.frames), (0, 0, 64, 64), size)
            )
            start += clip.frames
        files = {
            partial_path(final): final for spec in arrays for final in [shard_path(path, spec, unit.part)]
        }
        for temporary in files:
            temporary.touch()
        publish(path, records_dir(path), unit.part, outcomes, files)
    write_index(path, entries)


def _wanted(clips: list[Clip]) -> list[Wanted]:
    return [Wanted(clip, fingerprint("own", clip.fingerprint), clip.frames) for clip in clips]


def _open(folder: Path) -> Callable[[], object]:
    return lambda: [cache.open(folder / name) for name in _STORES]


def _sample(folder: Path) -> Callable[[], object]:
    """Prepare the order and all frames and flips of an epoch, as the loader draws them."""
    rgb, heatmaps = (cache.open(folder / name) for name in _STORES)
    dataset = ClipDataset([(id, 0) for id in rgb.ids], rgb=rgb, heatmaps=heatmaps, train=True)
    return lambda: dataset.draws(clip_rng(0, 1, "").permutation(len(dataset)), 1)


def _plan(folder: Path) -> Callable[[], object]:
    """Prepare what a stage does before its first unit, when a clip in each of half of the shards has left."""

    def work() -> object:
        clips = read_manifest(folder / "manifest.csv")
        wanted = _wanted([clip for number, clip in enumerate(clips) if number % 200])
        path = folder / "rgb.zarr"
        return plan(wanted, sound_records(path, records_dir(path)), _STORES["rgb.zarr"][0])

    return work


_TASKS: Mapping[str, Callable[[Path], Callable[[], object]]] = {
    "open": _open,
    "sample": _sample,
    "plan": _plan,
}


def _costs(task: str, folder: Path) -> tuple[float, float]:
    """Return the median seconds and bytes of a task; each round in a fresh process."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        costs = list(pool.map(_cost, [task] * _ROUNDS, [folder] * _ROUNDS))
    seconds, peaks = zip(*costs, strict=True)
    return median(seconds), median(peaks)


def _cost(task: str, folder: Path) -> tuple[float, int]:
    work = _TASKS[task](folder)
    gc.collect()
    # From here on Linux counts the peak anew.
    Path("/proc/self/clear_refs").write_text("5")
    base = peak_memory()
    begun = perf_counter()
    kept = work()
    seconds = perf_counter() - begun
    del kept
    return seconds, peak_memory() - base


def _index_costs(clips: int) -> dict[str, float]:
    """Run `harcache index` over so many videos of 64x48 pixels and 48 frames, and a sixteenth of them."""
    results = {"index.clips": float(clips)}
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source.mp4"
        rng = np.random.default_rng(0)
        write_video(source, [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(48)], fps=30)
        for size, suffix in ((clips // _PART, ".part"), (clips, "")):
            project = Path(name) / str(size)
            _write_params(project)
            for number in range(size):
                video = project / "videos" / "demo" / str(number % 20) / f"{number}.mp4"
                video.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, video)
            seconds, peak = _costs_of_index(project)
            results |= {f"index.seconds{suffix}": seconds, f"index.bytes{suffix}": float(peak)}
        results["index.again.seconds"], _ = _costs_of_index(project)
    return results


# By a small process between: a process counts the memory of the one that it was forked from as its own.
_WATCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def _costs_of_index(project: Path) -> tuple[float, int]:
    """Return the seconds and the peak memory in bytes of `harcache index`."""
    command = [sys.executable, "-c", _WATCH, "harcache", "index", "demo"]
    begun = perf_counter()
    done = subprocess.run(command, cwd=project, env=_environment(), capture_output=True, text=True)
    seconds = perf_counter() - begun
    assert done.returncode == 0, done.stdout + done.stderr
    return seconds, int(done.stdout) * 1024


def _time_repro(shards: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        project = Path(name) / "project"
        _make_project(project, shards)
        begun = perf_counter()
        said = _dvc(project, "repro")
        seconds = perf_counter() - begun
    skipped = said.count("didn't change, skipping")
    assert skipped == len(_COMMITTED), said
    return seconds


_BUILT = ("detect", "pose", "crop", "heatmap", "rgb")
_COMMITTED = (*_BUILT, "report")


def _make_project(project: Path, shards: int) -> None:
    """Make a project that DVC holds for built: one video, and stores of so many shards, all tiny."""
    _write_params(project)
    data = project / "data" / "demo"
    for folder in ("detections", "poses", "failures", "counts"):
        (data / folder).mkdir(parents=True)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(SHIPPED / name, project / name)
    video = project / "videos" / "demo" / "a.mp4"
    video.parent.mkdir(parents=True)
    write_video(video, [np.zeros((32, 32, 3), np.uint8)] * 2, fps=30)
    for name in ("detections/part-00000.h5", "poses/part-00000.h5", "crops.csv"):
        _touch(data / name)
    _touch(project / "report" / "demo.html")
    for stage in _BUILT:
        _touch(data / "failures" / f"{stage}.csv")
        _touch(data / "counts" / f"{stage}.json")
    for name, (_, arrays) in _STORES.items():
        for part in range(shards):
            for path in (shard_path(data / name, spec, part) for spec in arrays):
                _touch(path)
            _touch(records_dir(data / name) / f"part-{part:05d}.json")
    _dvc(project, "init", "--no-scm", "--quiet")
    _dvc(project, "repro", "index@demo")
    _dvc(project, "commit", "--force", *(f"{stage}@demo" for stage in _COMMITTED))


def _write_params(project: Path) -> None:
    """Write the parameters of one dataset, whose videos lie in class folders."""
    params: dict[str, Any] = yaml.safe_load((SHIPPED / "params.yaml").read_text())
    params["datasets"] = {"demo": params["datasets"]["demo"] | {"index": {"layout": "folder"}}}
    project.mkdir(parents=True, exist_ok=True)
    (project / "params.yaml").write_text(yaml.safe_dump(params | {"training": {}, "amfi": {}}))


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(path.name.encode())


def _environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("HARCACHE_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return own | {"PATH": path, "DVC_NO_ANALYTICS": "1"}


def _dvc(project: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["dvc", *arguments], cwd=project, env=_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

"""What a dataset's caches hold: clips, rows and bytes of each, and what reads all that there is of a clip."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from harcache import cache
from harcache.cache.annotations import read_detections, read_poses, read_positions
from harcache.cache.store_paths import records_dir
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip, read_manifest
from harcache.pipeline.work.outcomes import read_counts
from harcache.pipeline.work.parts import Record, read_records
from harcache.stages.shared.units import all_outcomes, part_file
from harcache.stages.shared.workspace import Workspace

__all__ = ["Read", "info", "present", "record_folder", "sources_of"]

Read = Callable[[], Iterable[np.ndarray]]


def present(workspace: Workspace) -> dict[str, Path]:
    """Return the folder of each cache that is there, by the stage that makes it, in the order of the stages.

    Raises HarcacheError where there is none.
    """
    folders = {
        "detect": workspace.detections,
        "pose": workspace.poses,
        "heatmap": workspace.heatmaps,
        "rgb": workspace.rgb,
    }
    there = {stage: folder for stage, folder in folders.items() if folder.is_dir()}
    if not there:
        raise HarcacheError(f"{workspace.data} has no caches; correct the dataset's name, or run its stages")
    return there


def record_folder(cache_folder: Path) -> Path:
    """Return where the records of a cache's parts lie."""
    return records_dir(cache_folder) if cache_folder.suffix == ".zarr" else cache_folder


def info(workspace: Workspace) -> dict[str, Any]:
    """Return what the caches hold, as JSON can hold it.

    ``caches``: by name clips, parts, rows (frames, of HDF5 too), bytes on disk, and of a store the bytes
    decoded, their ratio and each array's codec, in place of rows and these ``finished`` false while it is
    made; ``splits``: clips and classes of each protocol's splits, of the clips that all caches hold;
    ``stages``: how the clips of each stage ended.
    """
    folders = present(workspace).values()
    clips = {clip.id: clip for clip in read_manifest(workspace.manifest)}
    caches, stored = {}, set(clips)
    for folder in folders:
        records = read_records(record_folder(folder))
        ids = {outcome.id for outcome in all_outcomes(records) if outcome.status == "ok"}
        caches[folder.name] = _sizes(folder, records, [clips[id] for id in ids if id in clips])
        stored &= ids
    counts = sorted(workspace.counts("any").parent.glob("*.json"))
    return {
        "dataset": workspace.dataset,
        "caches": caches,
        "splits": _splits([clip for clip in clips.values() if clip.id in stored]),
        "stages": {path.stem: asdict(read_counts(path)) for path in counts},
    }


def _sizes(folder: Path, records: Sequence[Record], clips: Sequence[Clip]) -> dict[str, Any]:
    size = sum(size for record in records for _, size, _ in record.files)
    held = {"clips": len(clips), "parts": len(records), "bytes": size}
    if folder.suffix != ".zarr":
        return held | {"rows": sum(clip.frames for clip in clips)}
    try:
        store = cache.open(folder)
    except cache.IncompleteStoreError:
        return held | {"finished": False}
    arrays: Mapping[str, Mapping[str, Any]] = store.attributes["arrays"]
    rows = int(store.length.sum())
    row_bytes = sum(
        np.dtype(array["dtype"]).itemsize * int(np.prod(array["shape_of_row"])) for array in arrays.values()
    )
    codecs = {
        name: f"jpeg {array['quality']}" if array["codec"] == "jpeg" else array["codec"]
        for name, array in arrays.items()
    }
    decoded = rows * row_bytes
    ratio = round(decoded / size, 2) if size else None
    return held | {"rows": rows, "decoded_bytes": decoded, "ratio": ratio, "codecs": codecs}


def _splits(clips: Sequence[Clip]) -> dict[str, dict[str, dict[str, int]]]:
    labels: dict[tuple[str, str], list[int | None]] = defaultdict(list)
    for clip in clips:
        for protocol, split in clip.splits:
            labels[protocol, split].append(clip.label(protocol))
    found: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    for (protocol, split), classes in sorted(labels.items()):
        found[protocol][split] = {"clips": len(classes), "classes": len({*classes} - {None})}
    return dict(found)


def sources_of(stage: str, folder: Path) -> dict[str, Read]:
    """Return, by clip, what reads all arrays that a cache holds of it."""
    if folder.suffix == ".zarr":
        store = cache.open(folder)
        return {id: partial(_stored, store, id) for id in store.ids}
    read = read_detections if stage == "detect" else _read_skeletons
    return {
        outcome.id: partial(read, part_file(folder, record.part), outcome.id)
        for record in read_records(folder)
        for outcome in record.outcomes
        if outcome.status == "ok"
    }


def _read_skeletons(part: Path, id: str) -> list[np.ndarray]:
    positions = read_positions(part, id)
    return [*read_poses(part, id), *([] if positions is None else [positions])]


def _stored(store: cache.ClipStore, id: str) -> list[np.ndarray]:
    arrays = [store.read(name, id) for name in sorted(store.attributes["arrays"])]
    return [*arrays, store.frame_numbers(id), store.box(id), np.array(store.image_size(id))]

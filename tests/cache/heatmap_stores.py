"""Small stores of heatmaps, in two shards, for the tests of the cache."""

import numpy as np

from harcache.cache.array_spec import ArraySpec
from harcache.cache.clip_index import IndexEntry
from harcache.cache.shard_writer import ShardWriter
from harcache.cache.store_paths import shard_path
from harcache.cache.store_writer import create_store, write_index

SHARD_ROWS = 8
SPECS = {
    "jpeg": ArraySpec("frames", (20, 24, 3), "uint8", "jpeg", quality=90),
    "zstd": ArraySpec("frames", (20, 24, 3), "uint8", "zstd"),
    "blosc": ArraySpec("volume", (17, 6, 6), "uint8", "blosc"),
    "blosc float16": ArraySpec("keypoints", (2, 17, 3), "float16", "blosc"),
}
HEATMAPS = [SPECS["blosc"], SPECS["blosc float16"]]
ATTRIBUTES = {"dataset": "demo", "parameters": {"size": 6}, "fingerprint": "abc"}


def make_rows(spec: ArraySpec, count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).integers(0, 255, (count, *spec.shape_of_row)).astype(spec.dtype)
    rows[1::3] = 0
    return rows


def write_shard(root, spec: ArraySpec, part: int, rows: np.ndarray) -> None:
    write_file(shard_path(root, spec, part), spec, rows)


def write_file(path, spec: ArraySpec, rows: np.ndarray) -> None:
    with ShardWriter(path, spec, SHARD_ROWS) as writer:
        for row in rows:
            writer.append(row)


def entry(id: str, part: int, start: int, length: int) -> IndexEntry:
    return IndexEntry(id, part, start, length, range(10, 10 + length), (-1.5, 2, 30, 40), (240, 320))


ENTRIES = [entry("b", 0, 0, 3), entry("ä", 1, 1, 4), entry("a", 0, 3, 5)]


def make_heatmaps(root, entries=ENTRIES) -> dict[str, np.ndarray]:
    """Write a store of two shards; return each array's rows, shard after shard."""
    create_store(root, HEATMAPS, SHARD_ROWS, ATTRIBUTES)
    pixels = {spec.name: make_rows(spec, 2 * SHARD_ROWS) for spec in HEATMAPS}
    for spec in HEATMAPS:
        for part in (0, 1):
            write_shard(root, spec, part, pixels[spec.name][part * SHARD_ROWS :][:SHARD_ROWS])
    write_index(root, entries)
    return pixels

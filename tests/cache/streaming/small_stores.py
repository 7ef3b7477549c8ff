"""Stores of a few small clips whose rows say which clip and frame they are, and datasets of them."""

import itertools

import numpy as np
import torch

from harcache.cache.array_spec import ArraySpec
from harcache.cache.clip_index import IndexEntry
from harcache.cache.clip_store import open_store
from harcache.cache.shard_writer import ShardWriter
from harcache.cache.store_paths import shard_path
from harcache.cache.store_writer import create_store, write_index
from harcache.cache.streaming.dataset import ClipDataset

LENGTHS = [5, 48, 70, 120, 30, 96, 200, 12, 60, 51, 49]
CLIPS = [(f"clip{i}", i % 3) for i in range(len(LENGTHS))]
FRAMES = ArraySpec("frames", (16, 16, 3), "uint8", "zstd")
VOLUME = ArraySpec("volume", (17, 8, 8), "uint8", "blosc")
KEYPOINTS = ArraySpec("keypoints", (2, 17, 3), "float16", "blosc")


def row(spec, clip, frame):
    """A row that says which clip and frame it is, in one corner, over a picture of its own."""
    if spec is KEYPOINTS:
        return np.random.default_rng([clip, frame]).random(spec.shape_of_row, np.float32).astype(np.float16)
    values = np.random.default_rng([clip, frame]).integers(0, 256, spec.shape_of_row, np.uint8)
    values.reshape(-1)[:2] = clip, frame
    return values


def write_store(path, spec, shard_rows, lengths=LENGTHS):
    create_store(path, [spec], shard_rows, {})
    entries, part, start, writer = [], 0, 0, None
    for clip, length in enumerate(lengths):
        if writer is None or start + length > shard_rows:
            if writer is not None:
                writer.close()
                part, start = part + 1, 0
            writer = ShardWriter(shard_path(path, spec, part), spec, shard_rows)
        for frame in range(length):
            writer.append(row(spec, clip, frame))
        entries.append(IndexEntry(f"clip{clip}", part, start, length, range(length), (0, 0, 1, 1), (16, 16)))
        start += length
    writer.close()
    write_index(path, entries)
    return open_store(path)


def write_zeros(path, spec, rows):
    """A store of one clip that takes no space on disk worth speaking of."""
    create_store(path, [spec], rows, {})
    with ShardWriter(shard_path(path, spec, 0), spec, rows) as writer:
        for _ in range(rows):
            writer.append(np.zeros(spec.shape_of_row, spec.dtype))
    write_index(path, [IndexEntry("clip0", 0, 0, rows, range(rows), (0, 0, 1, 1), (16, 16))])
    return open_store(path)


def make(stores, train=True, clips=CLIPS, **options):
    return ClipDataset(clips, **stores, train=train, **options)


def copies(batches):
    return [{name: value.clone() for name, value in batch.items()} for batch in batches]


def take(loader, count):
    """The next ``count`` batches, over as many epochs as that takes, each as training sees it."""
    taken = []
    while len(taken) < count:
        taken += copies(itertools.islice(loader, count - len(taken)))
    return taken


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)

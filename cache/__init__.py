"""The formats on disk and the way back from them: ``cache.open`` reads, ``ClipLoader`` makes batches.

The names for training load PyTorch when they are first used; reading a store needs none.
"""

from typing import TYPE_CHECKING

from harcache.cache.clip_store import ClipStore
from harcache.cache.clip_store import open_store as open
from harcache.cache.errors import CacheError, IncompleteStoreError, StaleStoreError
from harcache.pipeline.base.lazy_names import lazy_names

if TYPE_CHECKING:
    from harcache.cache.streaming import (
        Batch,
        ClipDataset,
        ClipLoader,
        draw_heatmaps,
        prepare,
        prepare_skeletons,
    )

_FOR_TRAINING = ("Batch", "ClipDataset", "ClipLoader", "draw_heatmaps", "prepare", "prepare_skeletons")

__all__ = [
    "Batch",
    "CacheError",
    "ClipDataset",
    "ClipLoader",
    "ClipStore",
    "IncompleteStoreError",
    "StaleStoreError",
    "draw_heatmaps",
    "open",
    "prepare",
    "prepare_skeletons",
]

__getattr__ = lazy_names(__name__, dict.fromkeys(_FOR_TRAINING, "harcache.cache.streaming"))

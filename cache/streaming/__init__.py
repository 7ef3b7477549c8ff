"""Batches for training straight from the stores: what a sample is, and how batches are made ahead of time.

Everything of the caches that needs PyTorch lies here; the names below load it when they are first used.
"""

from typing import TYPE_CHECKING

from harcache.pipeline.base.lazy_names import lazy_names

if TYPE_CHECKING:
    from harcache.cache.streaming.dataset import Batch, ClipDataset
    from harcache.cache.streaming.heatmaps import draw_heatmaps
    from harcache.cache.streaming.loader import ClipLoader
    from harcache.cache.streaming.preparation import prepare
    from harcache.cache.streaming.skeletons import prepare_skeletons

__all__ = ["Batch", "ClipDataset", "ClipLoader", "draw_heatmaps", "prepare", "prepare_skeletons"]

__getattr__ = lazy_names(
    __name__,
    {
        "Batch": "harcache.cache.streaming.dataset",
        "ClipDataset": "harcache.cache.streaming.dataset",
        "ClipLoader": "harcache.cache.streaming.loader",
        "draw_heatmaps": "harcache.cache.streaming.heatmaps",
        "prepare": "harcache.cache.streaming.preparation",
        "prepare_skeletons": "harcache.cache.streaming.skeletons",
    },
)

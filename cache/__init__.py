"""The formats on disk and the way back from them; ``cache.open`` is all that other code needs."""

from harcache.cache.clip_store import ClipStore
from harcache.cache.clip_store import open_store as open
from harcache.cache.errors import CacheError, IncompleteStoreError, StaleStoreError

__all__ = ["CacheError", "ClipStore", "IncompleteStoreError", "StaleStoreError", "open"]

"""The errors of the caches, apart so that every module of the package can raise them."""

from pipeline.errors import HarcacheError

__all__ = ["CacheError", "StaleStoreError"]


class CacheError(HarcacheError):
    """A cache is missing, damaged, incomplete or of another format."""


class StaleStoreError(CacheError):
    """A store is whole, but was made with other parameters than those asked for."""

"""The errors of the caches, apart so that every module of the package can raise them."""

from harcache.pipeline.base.errors import HarcacheError

__all__ = ["CacheError", "IncompleteStoreError", "StaleStoreError"]


class CacheError(HarcacheError):
    """A cache is missing, damaged, incomplete or of another format."""


class IncompleteStoreError(CacheError):
    """A store is being made, or its stage was stopped, or some of it was taken out to be made again."""


class StaleStoreError(CacheError):
    """A store is whole, but was made with other parameters than those asked for."""

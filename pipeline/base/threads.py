"""Threads for work that leaves Python's lock: reading, hashing, decoding.

They are waited for, whatever ends the work: one left behind in a library's code hangs or crashes the command
as Python ends.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

__all__ = ["thread_pool"]


@contextmanager
def thread_pool(count: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Give a pool of ``count`` threads, None for one a core; after the block none begins any more."""
    pool = ThreadPoolExecutor(count or len(os.sched_getaffinity(0)))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)

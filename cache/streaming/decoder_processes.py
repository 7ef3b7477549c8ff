"""Forked processes that decode the samples of a batch into shared memory.

Processes, since threads take turns between rows. They are forked, so that dataset and memory are theirs
without a copy, and batches never pass through a pipe.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch

from harcache.cache.streaming.batch_memory import BatchMemory
from harcache.cache.streaming.batch_plan import DrawnSample
from harcache.cache.streaming.dataset import ClipDataset
from harcache.cache.streaming.input_wait import Work, measured
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.processes import end_with_parent

__all__ = ["DecoderProcesses", "default_workers"]

_CPU_WORKERS = 2


def default_workers(device: torch.device, processes: int = 1) -> int:
    """Return how many processes decode where ``processes`` of this machine train.

    All cores less one per training process where a GPU trains; on the CPU training needs the cores itself.
    """
    if device.type == "cpu":
        return _CPU_WORKERS
    return max(_CPU_WORKERS, len(os.sched_getaffinity(0)) // processes - 1)


class DecoderProcesses:
    """``workers`` processes that decode samples of ``dataset`` into any of ``memories``.

    ``shares``: in how many equal parts a batch is handed out.

    Raises:
        HarcacheError: /dev/shm is too full for the processes' locks.
    """

    def __init__(
        self, dataset: ClipDataset, memories: Sequence[BatchMemory], workers: int, shares: int
    ) -> None:
        self._shares = shares
        arrays = [memory.arrays for memory in memories]
        try:
            self._pool = ProcessPoolExecutor(workers, get_context("fork"), _adopt, (dataset, arrays))
        except OSError as error:
            raise HarcacheError(
                f"no process that decodes batches can be started ({error.strerror}): their locks take 64 KiB "
                "of /dev/shm; make room there, or start the container with --shm-size=1m or more"
            ) from error

    def decode(self, memory: int, samples: Sequence[DrawnSample]) -> list[Future[Work]]:
        """Start decoding samples into memory number ``memory``; return one future for each share."""
        share = max(1, -(-len(samples) // self._shares))
        return [
            self._pool.submit(_decode, memory, first, samples[first : first + share])
            for first in range(0, len(samples), share)
        ]


_adopted: tuple[ClipDataset, Sequence[Mapping[str, np.ndarray]]]
"""In a process that decodes: the dataset, and the arrays of each memory."""


def _adopt(dataset: ClipDataset, memories: Sequence[Mapping[str, np.ndarray]]) -> None:
    global _adopted
    _adopted = dataset, memories
    end_with_parent()
    # Ctrl-C reaches this process too; the training process ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _decode(memory: int, first: int, samples: Sequence[DrawnSample]) -> Work:
    """Decode samples into places from ``first`` on; return the work that this took."""
    dataset, memories = _adopted

    def decode() -> int:
        for place, sample in enumerate(samples, first):
            dataset.decode(*sample, memories[memory], place)
        return len(samples)

    return measured(decode)

"""Copies batches to the device of training; on a GPU beside the step before, on a stream of its own."""

from typing import Any

import torch

from harcache.cache.streaming.batch_memory import BatchMemory
from harcache.cache.streaming.dataset import Batch

__all__ = ["DeviceCopy"]


class DeviceCopy:
    """Copies batches to ``device``; without a GPU a batch stays where it was decoded."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None

    def copy(self, memory: BatchMemory, count: int) -> tuple[Batch, float]:
        """Return the first ``count`` samples on the device, and how many seconds a copy took.

        That is the copy before out of the same memory: the one that is started here is not awaited.
        """
        batch = {name: value[:count] for name, value in memory.tensors.items()}
        if self._device.type == "cuda":
            return self._copy_beside(memory, batch)
        return {name: value.to(self._device) for name, value in batch.items()}, 0.0

    def _copy_beside(self, memory: BatchMemory, batch: Batch) -> tuple[Batch, float]:
        self._stream = self._stream or torch.cuda.Stream(self._device)
        working = torch.cuda.current_stream(self._device)
        begun, memory.copied = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._stream):
            begun.record()
            moved = {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}
            memory.copied.record()
        seconds = memory.copying[0].elapsed_time(memory.copying[1]) / 1000 if memory.copying else 0.0
        memory.copying = begun, memory.copied
        working.wait_event(memory.copied)
        for value in moved.values():
            value.record_stream(working)
        return moved, seconds

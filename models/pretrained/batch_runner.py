"""Runs a network on batches of one size, on a GPU without waiting for it.

A batch always has the same size, filled up with blank images, since kernels are chosen by size and other
kernels round differently: so a clip's result does not depend on what shares its batches.
"""

import logging
from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from harcache.models.pretrained.number_format import repeatable
from harcache.pipeline.params import Precision

__all__ = ["BatchRunner"]

Outputs = tuple[Tensor, ...]
_log = logging.getLogger(__name__)
_RECORDED = 4  # shapes; each keeps its memory


class BatchRunner:
    """Runs batches of uint8 images on one device; on a GPU the caller goes on while the device works.

    Args:
        network: (B, h, w, 3) uint8 on the device → one tensor. It may not wait for the device, since on a GPU
            it is recorded once a shape and played again: a thousand kernels then cost one call, which threads
            that decode can't delay by holding Python's lock.
        reduce: that tensor → the few tensors to bring back, on the device too.
    """

    record = True  # whether a GPU's kernels are recorded

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        reduce: Callable[[Tensor], Outputs],
        batch: int,
        precision: Precision,
        device: str,
    ) -> None:
        self._network = network
        self._reduce = reduce
        self._batch = batch
        self._precision: Precision = precision
        self._device = torch.device(device)
        self._is_gpu = self._device.type == "cuda"
        self._recorded: dict[torch.Size, _Recorded] = {}

    def memory(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return uint8 memory for a batch, (batch, *shape), that a GPU reads while the caller goes on."""
        whole = (self._batch, *shape)
        if not self._is_gpu:
            return np.empty(whole, np.uint8)
        with torch.cuda.device(self._device):
            return torch.empty(whole, dtype=torch.uint8, pin_memory=True).numpy()

    def start(self, pixels: np.ndarray, images: int) -> Callable[[], tuple[Outputs, float]]:
        """Start on the first ``images`` of a batch in `memory`; the function that this returns waits.

        It gives the outputs, on the CPU and cut to the images, and the seconds that the device worked. Until
        then ``pixels`` may not change.
        """
        pixels[images:] = 0
        run = self._start_on_gpu if self._is_gpu else self._run_on_cpu
        with repeatable(self._precision):
            finish = run(torch.from_numpy(pixels))

        def finished() -> tuple[Outputs, float]:
            outputs, seconds = finish()
            return tuple(output[:images] for output in outputs), seconds

        return finished

    def _run_on_cpu(self, pixels: Tensor) -> Callable[[], tuple[Outputs, float]]:
        begun = perf_counter()
        outputs = self._reduce(self._network(pixels))
        seconds = perf_counter() - begun
        return lambda: (outputs, seconds)

    def _start_on_gpu(self, pixels: Tensor) -> Callable[[], tuple[Outputs, float]]:
        with torch.cuda.device(self._device):
            begun, ended, copied = (torch.cuda.Event(enable_timing=True) for _ in range(3))
            there = pixels.to(self._device, non_blocking=True)
            begun.record()
            outputs = self._reduce(self._on_gpu(there))
            ended.record()
            back = tuple(output.to("cpu", non_blocking=True) for output in outputs)
            copied.record()

        def finish() -> tuple[Outputs, float]:
            copied.synchronize()
            return back, begun.elapsed_time(ended) / 1000

        return finish

    def _on_gpu(self, pixels: Tensor) -> Tensor:
        if not self.record:
            return self._network(pixels)
        if pixels.shape not in self._recorded:
            if len(self._recorded) == _RECORDED:
                del self._recorded[next(iter(self._recorded))]
            try:
                self._recorded[pixels.shape] = _Recorded(self._network, pixels)
            except RuntimeError as error:
                _log.warning("the network can't be recorded as a CUDA graph, so it runs slower: %s", error)
                self.record = False
                return self._network(pixels)
        return self._recorded[pixels.shape](pixels)


class _Recorded:
    """A network's kernels as a CUDA graph; the output is overwritten by the next call."""

    def __init__(self, network: Callable[[Tensor], Tensor], pixels: Tensor) -> None:
        self._input = pixels.clone()
        # Libraries choose their kernels and take their memory before anything is recorded.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                network(self._input)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        # The threads ahead take pinned memory, which would otherwise end a recording in this thread.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = network(self._input)

    def __call__(self, pixels: Tensor) -> Tensor:
        self._input.copy_(pixels)
        self._graph.replay()
        return self._output

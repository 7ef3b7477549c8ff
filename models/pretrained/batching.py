"""Feeds a network from many clips at once: threads decode ahead of it and draw into batches that clips share.

Memory is bounded: each thread holds one frame, and a few batches wait. Which thread was first decides what
shares a batch, so networks must give an image the same result in any batch.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Condition, Thread
from time import perf_counter
from typing import Any, TypeVar

import cv2
import numpy as np

from harcache.models.pretrained.network import Finish, Image, Network
from harcache.pipeline.base.errors import HarcacheError

__all__ = ["Usage", "extract"]

_AHEAD = 2  # batches that wait, full, for the network
_SHAPES = 4  # batches that fill at a time, each with images of one shape
_UNDER_WAY = 2  # batches that a device has been given: it works on one while the next is started

_Clip = TypeVar("_Clip", bound=Hashable)
_Results = list[np.ndarray]


@dataclass
class Usage:
    """Where the time went, in seconds.

    ``decode`` and ``prepare`` are sums over the threads ahead of the network; ``network`` is when it worked,
    ``wait`` when it did not. Of the thread that feeds it, ``starved`` was spent waiting for batches,
    ``start`` starting them, ``finish`` waiting for results and sorting them.
    """

    decode: float = 0.0
    prepare: float = 0.0
    network: float = 0.0
    wait: float = 0.0
    starved: float = 0.0
    start: float = 0.0
    finish: float = 0.0
    images: int = 0


def extract(
    network: Network,
    sources: Mapping[_Clip, Iterable[tuple[np.ndarray, np.ndarray]]],
    threads: int,
    usage: Usage | None = None,
) -> dict[_Clip, list[_Results] | HarcacheError]:
    """Run a network over the frames of several clips, each read in one of so many ``threads``.

    ``sources``: a clip's frames, (H, W, 3) uint8 RGB, each with its boxes. Returns for each clip a list of
    every frame's results, one an image that the frame was prepared into; or, for a clip whose source or
    network raised a HarcacheError, that error. Any other error ends all of them and is raised.
    """
    usage = usage or Usage()
    begun, worked = perf_counter(), usage.network
    found: dict[Any, list[_Results]] = {clip: [] for clip in sources}
    failed: dict[Any, HarcacheError] = {}
    ahead = _Ahead(network, found, failed, usage)
    clips = iter(sources.items())
    # The threads share out the cores; OpenCV's own would come on top.
    cv2.setNumThreads(1)
    ahead.readers = max(1, min(threads, len(sources)))
    readers = [Thread(target=ahead.read, args=(clips,), daemon=True) for _ in range(ahead.readers)]
    try:
        for reader in readers:
            reader.start()
        _run_batches(network, ahead, failed, usage)
    finally:
        ahead.stop()
        for reader in readers:
            reader.join()
    usage.wait += perf_counter() - begun - (usage.network - worked)
    return found | failed


def _run_batches(network: Network, ahead: "_Ahead", failed: dict[Any, HarcacheError], usage: Usage) -> None:
    """Run the batches as they come, and put what was found where it belongs."""
    under_way: deque[tuple[Finish, _Batch]] = deque()

    def finish() -> None:
        waits, batch = under_way.popleft()
        begun = perf_counter()
        found, seconds = waits()
        for (clip, results, number), one in zip(batch.belong, found, strict=True):
            if isinstance(one, HarcacheError):
                failed[clip] = one
            else:
                results[number] = one
        usage.finish += perf_counter() - begun
        usage.network += seconds

    for batch in ahead.batches():
        begun = perf_counter()
        under_way.append((network.start(batch.pixels, batch.images), batch))
        usage.start += perf_counter() - begun
        usage.images += len(batch.images)
        if len(under_way) == _UNDER_WAY:
            finish()
    while under_way:
        finish()


@dataclass(eq=False)
class _Batch:
    """Images of one shape, those that are still being drawn included, and where their results belong."""

    pixels: np.ndarray
    images: list[Image] = field(default_factory=list)
    belong: list[tuple[Any, _Results, int]] = field(default_factory=list)
    drawn: int = 0
    closed: bool = False  # no image is added any more


class _Stopped(Exception):
    """The network is not fed any more."""


class _Ahead:
    """The threads that read, and the batches that they fill: images are drawn where the network reads."""

    def __init__(
        self,
        network: Network,
        found: dict[Any, list[_Results]],
        failed: dict[Any, HarcacheError],
        usage: Usage,
    ) -> None:
        self.readers = 0
        self._network = network
        self._found = found
        self._failed = failed
        self._usage = usage
        self._changed = Condition()  # guards everything below
        self._filling: dict[tuple[int, ...], _Batch] = {}
        self._closed: deque[_Batch] = deque()
        self._error: BaseException | None = None
        self._stopped = False

    def read(self, clips: Iterator[tuple[Any, Iterable[tuple[np.ndarray, np.ndarray]]]]) -> None:
        """Read one clip after the other, in a thread of its own."""
        spent, error = Usage(), None
        try:
            while True:
                with self._changed:
                    clip, source = next(clips, (None, None))
                if source is None:
                    break
                try:
                    self._read_clip(clip, source, spent)
                except HarcacheError as reason:
                    self._failed[clip] = reason
        except _Stopped:
            pass
        except BaseException as defect:
            error = defect
        with self._changed:
            self._usage.decode += spent.decode
            self._usage.prepare += spent.prepare
            self._error = self._error or error
            self.readers -= 1
            self._changed.notify_all()

    def _read_clip(self, clip: Any, source: Iterable[tuple[np.ndarray, np.ndarray]], spent: Usage) -> None:
        begun = perf_counter()
        for frame, boxes in source:
            decoded = perf_counter()
            images = self._network.prepare(frame, boxes)
            spent.decode += decoded - begun
            spent.prepare += perf_counter() - decoded
            results: _Results = [np.empty(0)] * len(images)
            self._found[clip].append(results)
            for number, image in enumerate(images):
                batch, slot = self._place(image, (clip, results, number))
                begun = perf_counter()
                try:
                    image.draw(slot)
                finally:
                    # Others' images of the batch go on, also where this one's clip fails.
                    self._has_drawn(batch)
                spent.prepare += perf_counter() - begun
            begun = perf_counter()

    def _place(self, image: Image, belongs: tuple[Any, _Results, int]) -> tuple[_Batch, np.ndarray]:
        """Add an image to the batch of its shape, when there is room for one, and say where to draw it."""
        with self._changed:
            while not self._stopped and image.shape not in self._filling:
                if len(self._closed) >= _AHEAD:
                    self._changed.wait()
                elif len(self._filling) == _SHAPES:
                    self._close(max(self._filling, key=lambda shape: len(self._filling[shape].images)))
                else:
                    self._filling[image.shape] = _Batch(self._network.memory(image.shape))
            if self._stopped:
                raise _Stopped
            batch = self._filling[image.shape]
            batch.images.append(image)
            batch.belong.append(belongs)
            if len(batch.images) == self._network.batch:
                self._close(image.shape)
            return batch, batch.pixels[len(batch.images) - 1]

    def _has_drawn(self, batch: _Batch) -> None:
        with self._changed:
            batch.drawn += 1
            if batch.closed and batch.drawn == len(batch.images):
                self._changed.notify_all()

    def _close(self, shape: tuple[int, ...]) -> None:
        batch = self._filling.pop(shape)
        batch.closed = True
        self._closed.append(batch)
        self._changed.notify_all()

    def batches(self) -> Iterator[_Batch]:
        """Give the batches as they are full and drawn, at last the others; raise what a thread raised."""
        while batch := self._next():
            yield batch

    def _next(self) -> _Batch | None:
        begun = perf_counter()
        with self._changed:
            while True:
                if self._error:
                    raise self._error
                if not self.readers:
                    for shape in list(self._filling):
                        self._close(shape)
                for batch in self._closed:
                    if batch.drawn == len(batch.images):
                        self._closed.remove(batch)
                        self._changed.notify_all()
                        self._usage.starved += perf_counter() - begun
                        return batch
                if not self.readers:
                    return None
                self._changed.wait()

    def stop(self) -> None:
        """End the threads where they would wait for room."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

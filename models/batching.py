"""Feeds a network from many clips at once: threads decode and crop ahead of it, batches fill across clips.

Memory is bounded: each thread holds one frame, and a few batches of prepared images wait. Which thread was
first decides what shares a batch, so networks must give an image the same result in any batch.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from threading import Event, Lock, Thread
from time import perf_counter
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np

from pipeline.errors import HarcacheError

__all__ = ["Finish", "Image", "Network", "Usage", "extract"]

_BATCHES_AHEAD = 2  # prepared frames that wait, in batches
_UNDER_WAY = 2  # batches that a device has been given: it works on one while the next is put together
_POLL = 0.1  # seconds until a thread with nowhere to put its work looks whether it is still wanted

_Clip = TypeVar("_Clip", bound=Hashable)
_Results = list[np.ndarray]


@dataclass(frozen=True)
class Image:
    """One image as a network takes it, uint8, and what brings its result back into the frame."""

    pixels: np.ndarray
    place: Any


# Waits for a batch: what was found in each image, or why nothing can be said of it, and the seconds that the
# network took.
Finish = Callable[[], tuple[Sequence[np.ndarray | HarcacheError], float]]


class Network(Protocol):
    """A pretrained network: ``batch`` images at a time, of one shape, whatever shares the batch."""

    batch: int

    def prepare(self, frame: np.ndarray, boxes: np.ndarray) -> list[Image]:
        """Cut a frame, (H, W, 3) uint8 RGB, into what the network takes; called from threads.

        ``boxes``: (n, 4 or more), x1 y1 x2 y2, the persons to look at; a detector looks at the whole frame.
        """
        ...

    def start(self, images: Sequence[Image]) -> Finish:
        """Start on at most ``batch`` images of one shape; what this returns waits for the end."""
        ...


@dataclass
class Usage:
    """Where the time went, in seconds.

    ``decode`` and ``prepare`` are sums over the threads ahead of the network; ``network`` is when it worked,
    ``wait`` when it did not. Of the thread that feeds it, ``starved`` was spent waiting for images,
    ``start`` putting batches together and starting them, ``finish`` waiting for results and sorting them.
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
    found: dict[_Clip, list[_Results]] = {clip: [] for clip in sources}
    failed: dict[_Clip, HarcacheError] = {}
    batches = _Batches(network, failed, usage)
    with _ahead(network, sources, threads, usage) as prepared:
        for clip, images in prepared:
            if isinstance(images, HarcacheError):
                failed[clip] = images
            else:
                results: _Results = [np.empty(0)] * len(images)
                found[clip].append(results)
                batches.add(clip, images, results)
        batches.end()
    usage.wait += perf_counter() - begun - (usage.network - worked)
    return found | failed


@dataclass
class _Batches:
    """Images in the order they come, by shape, and the batches under way."""

    network: Network
    failed: dict[Any, HarcacheError]
    usage: Usage
    waiting: dict[tuple[int, ...], list[tuple[Any, Image, _Results, int]]] = field(default_factory=dict)
    under_way: deque[tuple[Finish, list[tuple[Any, Image, _Results, int]]]] = field(default_factory=deque)

    def add(self, clip: Any, images: Sequence[Image], results: _Results) -> None:
        """Start a batch when one is full; many shapes at once may not hold more than two batches."""
        for number, image in enumerate(images):
            alike = self.waiting.setdefault(image.pixels.shape, [])
            alike.append((clip, image, results, number))
            if len(alike) == self.network.batch:
                self._start(image.pixels.shape)
        if sum(map(len, self.waiting.values())) > 2 * self.network.batch:
            self._start(max(self.waiting, key=lambda shape: len(self.waiting[shape])))

    def end(self) -> None:
        """Run what is left."""
        for shape in list(self.waiting):
            self._start(shape)
        while self.under_way:
            self._finish()

    def _start(self, shape: tuple[int, ...]) -> None:
        batch = self.waiting.pop(shape)
        begun = perf_counter()
        self.under_way.append((self.network.start([image for _, image, _, _ in batch]), batch))
        self.usage.start += perf_counter() - begun
        self.usage.images += len(batch)
        if len(self.under_way) == _UNDER_WAY:
            self._finish()

    def _finish(self) -> None:
        finish, batch = self.under_way.popleft()
        begun = perf_counter()
        found, seconds = finish()
        for (clip, _, results, number), one in zip(batch, found, strict=True):
            if isinstance(one, HarcacheError):
                self.failed[clip] = one
            else:
                results[number] = one
        self.usage.finish += perf_counter() - begun
        self.usage.network += seconds


@contextmanager
def _ahead(
    network: Network,
    sources: Mapping[_Clip, Iterable[tuple[np.ndarray, np.ndarray]]],
    threads: int,
    usage: Usage,
) -> Iterator[Iterator[tuple[_Clip, list[Image] | HarcacheError]]]:
    """Read the sources in threads: each frame's images as they come, and a clip's error in their place."""
    # The threads share out the cores; OpenCV's own would come on top.
    cv2.setNumThreads(1)
    ready: Queue[Any] = Queue(_BATCHES_AHEAD * network.batch)
    stop, lock, clips = Event(), Lock(), iter(sources.items())

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL)
                return True
            except Full:
                continue
        return False

    def read() -> None:
        spent = Usage()
        try:
            while True:
                with lock:
                    clip, source = next(clips, (None, None))
                if source is None:
                    break
                try:
                    if not all(put((clip, images)) for images in _prepared(network, source, spent)):
                        break
                except HarcacheError as error:
                    put((clip, error))
            put(None)
        except BaseException as error:
            put(error)
        with lock:
            usage.decode += spent.decode
            usage.prepare += spent.prepare

    readers = [Thread(target=read, daemon=True) for _ in range(max(1, min(threads, len(sources))))]
    for reader in readers:
        reader.start()
    try:
        yield _received(ready, len(readers), usage)
    finally:
        stop.set()
        for reader in readers:
            reader.join()


def _prepared(
    network: Network, source: Iterable[tuple[np.ndarray, np.ndarray]], spent: Usage
) -> Iterator[list[Image]]:
    begun = perf_counter()
    for frame, boxes in source:
        decoded = perf_counter()
        images = network.prepare(frame, boxes)
        spent.decode += decoded - begun
        spent.prepare += perf_counter() - decoded
        yield images
        begun = perf_counter()


def _received(ready: "Queue[Any]", readers: int, usage: Usage) -> Iterator[Any]:
    """Give what the readers put until each has ended; what one of them raised is raised here."""
    while readers:
        try:
            item = ready.get_nowait()
        except Empty:
            begun = perf_counter()
            item = ready.get()
            usage.starved += perf_counter() - begun
        if item is None:
            readers -= 1
        elif isinstance(item, BaseException):
            raise item
        else:
            yield item

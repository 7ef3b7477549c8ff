"""A pretrained network as the rest of the program sees it: images out of frames, and results of batches.

Nothing outside of a backend's module knows the names of its framework.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from harcache.pipeline.base.errors import HarcacheError

__all__ = ["Finish", "Image", "Network"]


@dataclass(frozen=True)
class Image:
    """One image as a network takes it, and what brings its result back into the frame.

    ``draw`` writes it, once, into uint8 memory of ``shape`` that holds anything before.
    """

    shape: tuple[int, ...]
    draw: Callable[[np.ndarray], object]
    place: Any


# Waits for a batch: what was found in each image, or why nothing can be said of it, and the seconds that the
# network took.
Finish = Callable[[], tuple[Sequence[np.ndarray | HarcacheError], float]]


class Network(Protocol):
    """A pretrained network: ``batch`` images at a time, of one shape, whatever shares the batch."""

    batch: int

    def memory(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return uint8 memory for a batch, (batch, *shape), that the device reads; called from threads."""
        ...

    def prepare(self, frame: np.ndarray, boxes: np.ndarray) -> list[Image]:
        """Cut a frame, (H, W, 3) uint8 RGB, into what the network takes; called from threads.

        ``boxes``: (n, 4 or more), x1 y1 x2 y2, the persons to look at; a detector looks at the whole frame.
        """
        ...

    def start(self, pixels: np.ndarray, images: Sequence[Image]) -> Finish:
        """Start on the first images of a batch's ``pixels``, where they are drawn; the rest holds anything.

        What this returns waits for the end; until then nobody else writes to ``pixels``.
        """
        ...

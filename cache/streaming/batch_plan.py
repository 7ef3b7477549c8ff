"""Which samples each batch holds and what is drawn of them: a pure function of seed, epoch and rank.

Neither the decoding processes nor the number of ranks changes a batch, so training resumes in mid-epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harcache.cache.sampling import clip_rng
from harcache.cache.streaming.dataset import ClipDataset
from harcache.pipeline.base.errors import HarcacheError

__all__ = ["BatchPlan", "DrawnSample", "PlannedBatch"]

# Samples; drawing more at once would delay the first batch and save no time.
_DRAWN_AT_ONCE = 1024

DrawnSample = tuple[int, NDArray[np.int64], bool]
"""A sample's index, its frames, and whether it is mirrored."""


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """One rank's part of a batch: its epoch and number in the epoch, its samples, and their crops (n, 4)."""

    epoch: int
    number: int
    samples: list[DrawnSample]
    crops: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The batches of one rank; ``batch_size`` counts the samples of all ``ranks`` together.

    Rank r takes every ``ranks``-th sample of an epoch, from its r-th on. A training set is shuffled by (seed,
    epoch); another one keeps its order.

    Raises:
        HarcacheError: ``batch_size`` is not a multiple of ``ranks``.
    """

    dataset: ClipDataset
    batch_size: int
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.ranks:
            raise HarcacheError(
                f"batch_size is {self.batch_size}; set it to a multiple of the {self.ranks} processes"
            )

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return -(-len(self.dataset) // self.batch_size)

    @property
    def size(self) -> int:
        """The largest number of samples of this rank in a batch."""
        return self.batch_size // self.ranks

    def samples_in(self, number: int) -> int:
        """Return how many samples the ranks have together in batch ``number`` of an epoch."""
        return min(self.batch_size, len(self.dataset) - number * self.batch_size)

    def batches(self, epoch: int, first: int, next_epochs: bool) -> Iterator[PlannedBatch]:
        """Give the batches from number ``first`` of an epoch on; with ``next_epochs`` without end."""
        while True:
            yield from self._batches_of(epoch, first)
            if not next_epochs:
                return
            epoch, first = epoch + 1, 0

    def _batches_of(self, epoch: int, first: int) -> Iterator[PlannedBatch]:
        samples = self._order(epoch)[self.rank :: self.ranks][first * self.size :]
        at_once = -(-_DRAWN_AT_ONCE // self.size) * self.size
        number = first
        for block in (samples[i : i + at_once] for i in range(0, len(samples), at_once)):
            frames, flips = self.dataset.draws(block, epoch)
            crops = self.dataset.crops(block, epoch)
            drawn = list(zip(block.tolist(), frames, flips.tolist(), strict=True))
            for i in range(0, len(drawn), self.size):
                part = slice(i, i + self.size)
                yield PlannedBatch(epoch, number, drawn[part], None if crops is None else crops[part])
                number += 1
        # Where other ranks have one more sample.
        if number < len(self):
            yield PlannedBatch(epoch, number, [], None)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return every sample of an epoch once, (n,)."""
        count = len(self.dataset)
        if self.dataset.train:
            return clip_rng(self.dataset.seed, epoch, "").permutation(count)
        return np.arange(count)

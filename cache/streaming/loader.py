"""Batches for training, decoded ahead by processes into memory that is used again.

The price of reused memory: on the CPU a batch is soon overwritten.
"""

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice

import torch

from harcache.cache.streaming.batch_memory import BatchMemory
from harcache.cache.streaming.batch_plan import BatchPlan, PlannedBatch
from harcache.cache.streaming.dataset import Batch, ClipDataset
from harcache.cache.streaming.decoder_processes import DecoderProcesses, default_workers
from harcache.cache.streaming.device_copy import DeviceCopy
from harcache.cache.streaming.input_wait import Waits, Work, watch
from harcache.pipeline.base.errors import HarcacheError

__all__ = ["ClipLoader"]


class ClipLoader:
    """Batches of a dataset, decoded ahead by processes; each iteration is one epoch, or the rest of one.

    ``batch_size`` counts the samples of all ``ranks`` together; rank r takes every ``ranks``-th, from its
    r-th on. The last batch of an epoch may be smaller, and a rank's share of it one less than another's, or
    empty. A training set is shuffled by (seed, epoch); another comes in order, each time from the start.

    ``workers``: processes that decode, by default as ``default_workers`` says; ``prefetch``: batches ahead,
    with ``again`` also of the next iteration, while the last batches of one are worked on.
    Batches hold the dataset's samples stacked along a first axis. On a GPU (``device``) they are in fresh
    memory, copied during the work on the batch before; on the CPU it is used again once two more batches are
    taken. ``waits`` sums up how long training waited for them; you may replace it at any time.

    Raises:
        HarcacheError: ``batch_size`` is not a multiple of ``ranks``. ``next`` raises what fails in a process,
            and HarcacheError when a process was killed or /dev/shm is too full for their locks.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        *,
        workers: int | None = None,
        prefetch: int = 2,
        again: bool = False,
        device: str | torch.device = "cpu",
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._dataset = dataset
        self._plan = BatchPlan(dataset, batch_size, rank, ranks)
        self._device, self._prefetch, self._again = torch.device(device), prefetch, again
        self._workers = workers or default_workers(self._device)
        self._epoch, self._next_batch = 0, 0
        self._memories: list[BatchMemory] = []
        self._used = 0
        self._planned: Iterator[PlannedBatch] = iter(())
        self._started: deque[_Started] = deque()
        self.waits = Waits()
        self._copy = DeviceCopy(self._device)
        self._decoders: DecoderProcesses | None = None
        self._running: Generator[Batch, None, None] | None = None

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self._plan)

    def samples_in(self, number: int) -> int:
        """Return how many samples the ranks have together in batch ``number`` of an epoch."""
        return self._plan.samples_in(number)

    def __iter__(self) -> Iterator[Batch]:
        if self._running is not None:
            self._running.close()
        if not self._dataset.train:
            self._next_batch = 0
        self._running = watch(self._batches(), self.waits, self._device)
        return self._running

    def state_dict(self) -> dict[str, int]:
        """Return where training is: the epoch and batch to come, and what the order of batches depends on."""
        return {"epoch": self._epoch, "batch": self._next_batch, **self._order_depends_on()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume from ``state_dict``; raise HarcacheError when the batches would differ from then."""
        for key, value in self._order_depends_on().items():
            if state.get(key) != value:
                raise HarcacheError(
                    f"the checkpoint was made with {key} {state.get(key)} and training now has {value}; "
                    f"restore that, or start training again"
                )
        self._epoch, self._next_batch = state["epoch"], state["batch"]

    def _order_depends_on(self) -> dict[str, int]:
        return {
            "seed": self._dataset.seed,
            "samples": len(self._dataset),
            "batch_size": self._plan.batch_size,
        }

    def _batches(self) -> Generator[Batch, None, None]:
        first = self._epoch, self._next_batch
        if not self._started or self._started[0].place != first:
            self._forget()
            self._planned = self._plan.batches(*first, next_epochs=self._again)
        for _ in range(self._next_batch, len(self)):
            try:
                batch = self._take()
            except BaseException as error:
                self._forget()
                if not isinstance(error, BrokenProcessPool):
                    raise
                self._decoders = None
                raise HarcacheError(
                    "a process that decodes batches was killed, perhaps as memory ran out; "
                    "use smaller batches or free memory, and start training again"
                ) from error
            self._advance()
            yield batch

    def _take(self) -> Batch:
        """Start what is to be decoded ahead, and wait for the next batch."""
        for planned in islice(self._planned, self._prefetch + 1 - len(self._started)):
            self._started.append(self._start(planned))
        batch = self._finish(self._started[0])
        self._started.popleft()
        return batch

    def _forget(self) -> None:
        """Drop batches that were started and are not the next ones, once no process writes into them."""
        # Not where an iteration is closed: the garbage collector may close it in the thread that the
        # processes report to.
        wait([future for each in self._started for future in each.futures if not future.cancel()])
        self._started.clear()

    def _start(self, planned: PlannedBatch) -> "_Started":
        """Have the processes decode a batch, in equal shares."""
        self._decoders = self._decoders or self._start_processes()
        number = self._used % len(self._memories)
        self._used += 1
        memory = self._memories[number]
        memory.wait_until_copied()
        if planned.crops is not None:
            memory.arrays["crop"][: len(planned.crops)] = planned.crops
        futures = self._decoders.decode(number, planned.samples)
        return _Started((planned.epoch, planned.number), memory, futures)

    def _start_processes(self) -> DecoderProcesses:
        batch, pinned = self._dataset.allocate(self._plan.size), self._device.type == "cuda"
        # One is being worked on and one was just handed out when the last of the others is started.
        self._memories = [BatchMemory(batch, pinned) for _ in range(self._prefetch + 2)]
        # As few shares as keep all processes at work: each one wakes a process beside the one that trains.
        shares = -(-self._workers // max(1, self._prefetch))
        return DecoderProcesses(self._dataset, self._memories, self._workers, shares)

    def _finish(self, started: "_Started") -> Batch:
        done = [future.result() for future in started.futures]
        self.waits.decode += sum(work.busy - work.disk for work in done) / self._workers
        self.waits.disk += sum(work.disk for work in done) / self._workers
        batch, seconds = self._copy.copy(started.memory, sum(work.samples for work in done))
        self.waits.transfer += seconds
        return batch

    def _advance(self) -> None:
        # Before the batch is handed out: what is saved while the last one is worked on must point to the
        # next epoch.
        self._next_batch += 1
        if self._next_batch == len(self):
            self._epoch, self._next_batch = self._epoch + 1, 0


@dataclass(frozen=True, slots=True)
class _Started:
    """A batch that is being decoded: its epoch and number, its memory, and the processes' shares of it."""

    place: tuple[int, int]
    memory: BatchMemory
    futures: list[Future[Work]]

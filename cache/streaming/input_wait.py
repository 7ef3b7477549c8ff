"""How long training waits for its batches, and what the processes that make them do meanwhile.

On a GPU its own idle time counts, taken from events in its queue: the host may well wait while it works.
"""

import resource
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, fields
from time import perf_counter, process_time
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

__all__ = ["Waits", "Work", "measured", "watch"]

_STEPS_AHEAD = 2  # that a GPU's host may queue; each holds a batch in the GPU's memory
_LATE = 0.05  # share of waiting from which something is wrong
_FEW = 20  # steps in which the start of the processes still weighs

_Batch = TypeVar("_Batch", bound=Mapping[str, Tensor])
_Cause = Literal["decode", "disk", "transfer"]
_REMEDIES: dict[_Cause, str] = {
    "decode": "give it more processor cores (--workers)",
    "disk": "put the stores on a faster disk, or give the machine memory to keep them in",
    "transfer": "draw heatmaps on the GPU (sample.heatmaps: keypoints), which moves fewer bytes",
}


@dataclass(frozen=True, slots=True)
class Work:
    """What one process spent on its share of a batch, in seconds; ``disk`` is a part of ``busy``."""

    samples: int
    busy: float
    disk: float


def measured(decode: Callable[[], int]) -> Work:
    """Call ``decode``, which returns a number of samples; time it and what it waited for the disk.

    A mapped file that is not in memory makes the process sleep in a page fault. Without such faults the time
    off the processor is that of others who use it, which is no disk's.
    """
    faults, wall, cpu = _major_faults(), perf_counter(), process_time()
    samples = decode()
    busy, cpu = perf_counter() - wall, process_time() - cpu
    return Work(samples, busy, max(0.0, busy - cpu) if _major_faults() > faults else 0.0)


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


@dataclass(slots=True)
class Waits:
    """Sums over steps, in seconds: all of it, the part waited, the loader's work a process, and transfers."""

    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    decode: float = 0.0
    disk: float = 0.0
    transfer: float = 0.0

    @property
    def share(self) -> float:
        """Part of the time that was waited, 0..1."""
        return self.waited / self.seconds if self.seconds else 0.0

    @property
    def samples_per_second(self) -> float:
        """Samples of this process by second, waiting included."""
        return self.samples / self.seconds if self.seconds else 0.0

    def warning(self) -> str | None:
        """Return one line that names the cause, where over 5 % of the time was waited in 20 steps or more."""
        if self.share <= _LATE or self.steps < _FEW:
            return None
        costs: dict[_Cause, float] = {"decode": self.decode, "disk": self.disk, "transfer": self.transfer}
        cause = max(costs, key=lambda name: costs[name])
        return (
            f"training waits {self.share:.0%} of its time for batches, most of it for {cause} "
            f"({', '.join(f'{name} {cost:.1f} s' for name, cost in costs.items())} of {self.seconds:.1f} s); "
            f"{_REMEDIES[cause]}"
        )

    def plus(self, other: "Waits") -> "Waits":
        """Return the sums of both."""
        return Waits(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def since(self, before: "Waits") -> "Waits":
        """Return what came after ``before``, an earlier copy."""
        return Waits(*(getattr(self, each.name) - getattr(before, each.name) for each in fields(self)))


def watch(batches: Iterable[_Batch], waits: Waits, device: torch.device) -> Generator[_Batch, None, None]:
    """Give ``batches``, which have a ``label``, and add up in ``waits`` how long each was waited for.

    A step lasts from one batch being asked for to the next. On a GPU the host is held back as well, which
    would else queue any number of steps and their batches.
    """
    clock = _Clock(waits, device)
    clock.asked()
    for batch in batches:
        clock.given(len(batch["label"]))
        yield batch
        clock.asked()
    clock.settle(0)


class _Clock:
    def __init__(self, waits: Waits, device: torch.device) -> None:
        self._waits, self._device = waits, device
        self._cuda = device.type == "cuda"
        self._steps: deque[tuple[Any, Any, Any, int]] = deque()
        self._asked: Any = None
        self._given: Any = None
        self._samples = 0

    def asked(self) -> None:
        """Note that the work on the batch before is done, or queued, and the next one is asked for."""
        now = self._now()
        if self._given is not None:
            self._steps.append((self._asked, self._given, now, self._samples))
        self._asked = now
        self.settle(_STEPS_AHEAD if self._cuda else 0)

    def given(self, samples: int) -> None:
        """Note that a batch is there, of so many samples."""
        self._given, self._samples = self._now(), samples

    def settle(self, ahead: int) -> None:
        """Add up the steps but for the last ``ahead`` ones, when the device has done them."""
        while len(self._steps) > ahead:
            asked, given, done, samples = self._steps.popleft()
            if self._cuda:
                done.synchronize()
            self._waits.steps += 1
            self._waits.samples += samples
            self._waits.waited += self._between(asked, given)
            self._waits.seconds += self._between(asked, done)

    def _now(self) -> Any:
        if not self._cuda:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self._cuda else end - start

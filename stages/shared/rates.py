"""How long parts take: seconds by kind of work, kept for people and printed at a stage's end."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from harcache.pipeline.base.tables import write_json
from harcache.pipeline.work.engine import Report

__all__ = ["AHEAD", "Timer", "rate_file", "rate_summary", "write_rate"]

AHEAD = " ahead"  # ends the names of times that threads spent beside the unit's own

_Item = TypeVar("_Item")


@dataclass
class Timer:
    """Seconds by kind of work: ``with timer("decode"): ...``."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Add the time that the block takes to ``kind``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - start

    def iterate(self, kind: str, items: Iterator[_Item]) -> Iterator[_Item]:
        """Pass ``items`` on and add the time spent waiting for each to ``kind``."""
        while True:
            with self(kind):
                item = next(items, None)
            if item is None:
                return
            yield item


def rate_file(data: Path, stage: str) -> Path:
    """Return where a stage keeps how long its last parts took: JSON, for people; nothing depends on it."""
    return data / "rates" / f"{stage}.json"


def write_rate(path: Path, reports: Sequence[Report]) -> None:
    """Write how much the parts of ``reports`` held and how long they took, by kind of work."""
    seconds = _seconds(reports)
    own = sum(spent for kind, spent in seconds.items() if not kind.endswith(AHEAD))
    clips = sum(report.ok + report.skipped + report.failed for report in reports)
    rate = {
        "clips": clips,
        "frames": sum(report.frames for report in reports),
        "seconds": own,
        "share": {kind: spent / (own or 1.0) for kind, spent in sorted(seconds.items())},
    }
    write_json(path, rate)


def _seconds(reports: Sequence[Report]) -> Counter[str]:
    """Return the seconds of all workers by kind of work."""
    seconds: Counter[str] = Counter()
    for report in reports:
        seconds.update(report.seconds)
    return seconds


def rate_summary(stage: str, kept: int, reports: Sequence[Report]) -> str:
    """Return the same in words; ``kept`` clips were there before."""
    if not reports:
        return f"{stage}: nothing to do, {kept} clips are there"
    seconds = _seconds(reports)
    own = {kind: spent for kind, spent in seconds.items() if not kind.endswith(AHEAD)}
    whole = sum(own.values()) or 1.0
    # Of the unit's own time first, then, of that same time, what ran beside it.
    order = sorted(seconds, key=lambda kind: (kind not in own, -seconds[kind]))
    shares = ", ".join(f"{kind} {seconds[kind] / whole:.0%}" for kind in order)
    frames = sum(report.frames for report in reports)
    rate = frames / whole
    return f"{stage}: {len(reports)} parts, {frames} frames, {rate:.0f} a second a worker ({shares})"

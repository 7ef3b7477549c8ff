"""Times rivals in turns, so that a machine that slows down slows all of them."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from harcache.pipeline.base.tables import write_json

__all__ = ["peak_memory", "side_by_side", "write_results"]


def side_by_side(
    rivals: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, float]:
    """Call every rival once a round and return the median seconds of each; warm-up rounds don't count."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(warmup + rounds):
        for name, call in rivals.items():
            begun = perf_counter()
            call()
            if number >= warmup:
                seconds[name].append(perf_counter() - begun)
    return {name: median(values) for name, values in seconds.items()}


def write_results(path: Path | None, results: Mapping[str, Any]) -> None:
    """Write what was measured as JSON, where a file was asked for."""
    if path is not None:
        write_json(path, results)


def peak_memory() -> int:
    """Return the peak of this process's resident memory in bytes; Linux counts it."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024

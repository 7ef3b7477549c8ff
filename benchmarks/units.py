"""What handing out work costs: units that do nothing, through the engine and two workers of this machine."""

import gc
from collections.abc import Mapping
from time import perf_counter, process_time

from harcache.benchmarks.timing import peak_memory
from harcache.pipeline.clips import Clip
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.plan import Unit

__all__ = ["as_table", "measure"]

_WORKERS = 2
_CLIPS = 32  # of a unit, as detection and pose have them


def measure(units: int) -> dict[str, float]:
    """Return ``unit.seconds``, what one of so many units takes, ``unit.cpu_seconds`` and ``client.bytes``.

    The latter two are this process's, which the scheduler is in: its own time, changed less by others,
    and how far its peak of memory grew since a sixteenth of the units were done.
    """
    clips = tuple(
        Clip(f"S001C001P001R001A{i:03}", f"{i:03}.avi", 0, 84, 1080, 1920, 30.0, 1, 1, "f" * 32)
        for i in range(_CLIPS)
    )
    made = [Unit(part, clips, ("f" * 32,) * _CLIPS) for part in range(units)]
    with Engine(_WORKERS) as engine:
        engine.run(_nothing, made[: max(1, units // 16)], None, "begin")
        gc.collect()
        before = peak_memory()
        begun, own = perf_counter(), process_time()
        engine.run(_nothing, made, None, "units")
        seconds, own = perf_counter() - begun, process_time() - own
    return {
        "units": float(units),
        "unit.seconds": seconds / units,
        "unit.cpu_seconds": own / units,
        "client.bytes": float(peak_memory() - before),
    }


def as_table(results: Mapping[str, float]) -> str:
    """Return the results as text."""
    return (
        f"{results['units']:.0f} units of {_CLIPS} clips: {results['unit.seconds'] * 1e3:.2f} ms a unit, "
        f"{results['unit.cpu_seconds'] * 1e3:.2f} ms of it in client and scheduler; "
        f"{results['client.bytes'] / 2**20:.0f} MiB more memory"
    )


def _nothing(unit: Unit, context: None) -> Report:
    return Report(unit.part, ok=len(unit.clips))

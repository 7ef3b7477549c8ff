"""What handing out work costs: units that do nothing, through the engine and two workers of this machine."""

import gc
from collections.abc import Mapping
from time import perf_counter

from benchmarks.timing import peak_memory
from pipeline.clips import Clip
from pipeline.engine import Engine, Report
from pipeline.plan import Unit

__all__ = ["as_table", "measure"]

_WORKERS = 2
_CLIPS = 32  # of a unit, as detection and pose have them


def measure(units: int) -> dict[str, float]:
    """Return ``unit.seconds``, what one of so many units takes, and ``client.bytes``, its peak's growth.

    The growth is that of this process, which the scheduler is in, since a sixteenth of the units were done.
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
        begun = perf_counter()
        engine.run(_nothing, made, None, "units")
        seconds = perf_counter() - begun
    return {"units": float(units), "unit.seconds": seconds / units, "client.bytes": peak_memory() - before}


def as_table(results: Mapping[str, float]) -> str:
    """Return the results as text."""
    return (
        f"{results['units']:.0f} units of {_CLIPS} clips: {results['unit.seconds'] * 1e3:.2f} ms a unit, "
        f"{results['client.bytes'] / 2**20:.0f} MiB more memory"
    )


def _nothing(unit: Unit, context: None) -> Report:
    return Report(unit.part, ok=len(unit.clips))

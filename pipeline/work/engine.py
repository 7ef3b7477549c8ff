"""Runs units of work on Dask, or in this process, and says by name which ones did not come back.

Results are files, so a lost worker costs one unit. A unit that raises is not tried again, since what it met
is still there; after an error that every other unit would meet too, none is begun any more.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harcache.pipeline.base.errors import HarcacheError, StandstillError
from harcache.pipeline.base.progress import progress
from harcache.pipeline.base.text import printable
from harcache.pipeline.work.clusters import Site, connected, has_gpu, scheduler_address, site
from harcache.pipeline.work.dispatch import Dispatch, died
from harcache.pipeline.work.plan import Unit

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Engine", "Report"]

_NAMED_CLIPS = 3
_NAMED_PARTS = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Report:
    """What a unit returns: clips by outcome, source frames read, and seconds by kind of work."""

    part: int
    ok: int
    skipped: int = 0
    failed: int = 0
    frames: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


Process = Callable[[Unit, Any], Report]


class Engine:
    """Where units run: a context manager that starts its workers when the first unit comes.

    ``workers``: processes; 0 runs units in this process, None takes one a GPU where ``device`` is "cuda",
    else one a core but not more than have 4 GiB of memory each. ``scheduler``: address of a running Dask
    scheduler, which then rules the number of workers, or "slurm"; Dask's own configuration
    (``scheduler-address``) may name one too. A unit that takes longer than ``unit_timeout`` seconds has its
    worker process ended, and is made without the clips that do so by themselves; in this process it is not.
    """

    def __init__(
        self,
        workers: int | None = None,
        scheduler: str | None = None,
        device: str = "cpu",
        unit_timeout: float | None = None,
    ) -> None:
        if workers is not None and workers < 0:
            raise HarcacheError(f"workers is {workers}: expected 0 (this process) or more")
        self._workers = workers
        self._scheduler = scheduler
        self._device = device
        self._unit_timeout = unit_timeout
        self._client: Client | None = None
        self._site: Site | None = None
        self._started = contextlib.ExitStack()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self._client = None
        self._started.close()

    @property
    def address(self) -> str | None:
        """Of the Dask scheduler, or "slurm"; None where workers are this machine's processes or this one."""
        return None if self._workers == 0 else scheduler_address(self._scheduler)

    def run(
        self, process: Process, units: Sequence[Unit], context: Any, stage: str, clips_done: int = 0
    ) -> list[Report]:
        """Run ``process(unit, context)`` for every unit and return the reports by part number.

        ``process`` is a top-level function and ``context`` can be pickled. ``clips_done`` were done before
        and count as such in the display. If a unit raised, or went on killing its worker, a HarcacheError
        that names its part and clips is raised once all others are done; their parts are kept.
        """
        reports: list[Report] = []
        errors: list[tuple[Unit, BaseException]] = []
        total = clips_done + sum(len(unit.clips) for unit in units)
        with progress(total, stage, done=clips_done) as display:
            for unit, result in self._results(process, units, context, stage):
                if isinstance(result, BaseException):
                    _log.error("%s: %s", stage, _describe(unit, result), exc_info=_traceback_of(result))
                    errors.append((unit, result))
                    display.advance(len(unit.clips), failed=len(unit.clips))
                else:
                    reports.append(result)
                    display.advance(len(unit.clips), failed=result.failed)
        if errors:
            raise _summary(stage, errors, len(units), len(reports)) from errors[0][1]
        return sorted(reports, key=lambda report: report.part)

    def _results(
        self, process: Process, units: Sequence[Unit], context: Any, stage: str
    ) -> Iterator[tuple[Unit, Report | BaseException]]:
        if not units:
            return iter(())
        if self._workers == 0:
            return _run_here(process, units, context)
        # Workers elsewhere may have GPUs that this machine lacks.
        gpus = self._device == "cuda" or (self._device == "auto" and (self.address is not None or has_gpu()))
        if self._client is None:
            self._site = self._started.enter_context(site()) if self.address else None
            # A GPU that was named is all there is to share.
            workers = 1 if self._workers is None and self._device.startswith("cuda:") else self._workers
            client = connected(workers, self.address, gpus)
            self._client = self._started.enter_context(client)
        dispatch = Dispatch(self._client, process, context, stage, self._unit_timeout, gpus, self._site)
        return dispatch.run(units)


def _run_here(
    process: Process, units: Sequence[Unit], context: Any
) -> Iterator[tuple[Unit, Report | BaseException]]:
    for unit in units:
        try:
            yield unit, process(unit, context)
        except Exception as error:
            yield unit, error
            if isinstance(error, StandstillError):
                return


def _traceback_of(error: BaseException) -> BaseException | None:
    # A traceback helps with a defect of the program alone.
    return None if isinstance(error, HarcacheError) or died(error) else error


def _describe(unit: Unit, error: BaseException) -> str:
    names = [clip.id for clip in unit.clips]
    more = f" and {len(names) - _NAMED_CLIPS} more" if len(names) > _NAMED_CLIPS else ""
    if died(error):
        what = "its worker process died twice (out of memory, or a crash in a library)"
    elif isinstance(error, HarcacheError):
        what = str(error)
    else:
        what = " ".join(f"{type(error).__name__}: {error}".split())
    return printable(f"part {unit.part} (clips {', '.join(names[:_NAMED_CLIPS])}{more}): {what}")


def _summary(
    stage: str, errors: Sequence[tuple[Unit, BaseException]], units: int, made: int
) -> HarcacheError:
    parts = "; ".join(_describe(unit, error) for unit, error in errors[:_NAMED_PARTS])
    more = f"; and {len(errors) - _NAMED_PARTS} more, named above" if len(errors) > _NAMED_PARTS else ""
    left = units - made - len(errors)
    not_begun = f", and {left} were not begun" if left else ""
    return HarcacheError(
        f"{stage}: {len(errors)} of {units} parts could not be made{not_begun}. {parts}{more}. "
        "The other parts are kept; run again to make only these"
    )

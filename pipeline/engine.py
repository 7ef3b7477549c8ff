"""Runs units of work on Dask, or in this process, and says by name which ones did not come back.

Results are files, so a lost worker costs one unit. A unit that raises is not tried again, since what it met
is still there; one whose worker dies is tried once more, since the cause may have been another unit.
"""

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import HarcacheError
from pipeline.plan import Unit
from pipeline.progress import progress

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Engine", "Report"]

_MEMORY_PER_WORKER = 4 * 2**30  # bytes; a detector or pose network with a batch of frames needs under 3 GiB
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
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

    ``workers``: processes; 0 runs units in this process, None takes one a core but not more than have
    4 GiB of memory each. ``scheduler``: address of a running Dask scheduler, which then rules the number of
    workers; Dask's own configuration (``scheduler-address``) may name one too. Each worker runs
    ``threads_per_worker`` units at a time.
    """

    def __init__(
        self, workers: int | None = None, scheduler: str | None = None, threads_per_worker: int = 1
    ) -> None:
        if workers is not None and workers < 0:
            raise HarcacheError(f"workers is {workers}: expected 0 (this process) or more")
        self._workers = workers
        self._scheduler = scheduler
        self._threads_per_worker = threads_per_worker
        self._client: Client | None = None
        self._started = contextlib.ExitStack()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self._client = None
        self._started.close()

    def run(
        self, process: Process, units: Sequence[Unit], context: Any, stage: str, clips_done: int = 0
    ) -> list[Report]:
        """Run ``process(unit, context)`` for every unit and return the reports by part number.

        ``process`` is a top-level function and ``context`` can be pickled. ``clips_done`` were done before
        and count as such in the display. If a unit raised, or killed its worker twice, a HarcacheError that
        names its part and clips is raised once all others are done; their parts are kept.
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
            raise _summary(stage, errors, len(units)) from errors[0][1]
        return sorted(reports, key=lambda report: report.part)

    def _results(
        self, process: Process, units: Sequence[Unit], context: Any, stage: str
    ) -> Iterator[tuple[Unit, Report | BaseException]]:
        if not units:
            return iter(())
        if self._workers == 0:
            return _run_here(process, units, context)
        if self._client is None:
            client = _connected(self._workers, self._scheduler, self._threads_per_worker)
            self._client = self._started.enter_context(client)
        return _run_on(self._client, process, units, context, stage)


def _run_here(
    process: Process, units: Sequence[Unit], context: Any
) -> Iterator[tuple[Unit, Report | BaseException]]:
    for unit in units:
        try:
            yield unit, process(unit, context)
        except Exception as error:
            yield unit, error


def _run_on(
    client: "Client", process: Process, units: Sequence[Unit], context: Any, stage: str
) -> Iterator[tuple[Unit, Report | BaseException]]:
    suspects = []
    for unit, result in _completed(client, process, units, context, stage):
        if isinstance(result, BaseException) and _killed_worker(result):
            suspects.append(unit)
        else:
            yield unit, result
    # A dead worker may have held other units too; one at a time, a second death has but one cause.
    for unit in suspects:
        yield from _completed(client, process, [unit], context, stage)


def _completed(
    client: "Client", process: Process, units: Sequence[Unit], context: Any, stage: str
) -> Iterator[tuple[Unit, Report | BaseException]]:
    from distributed import as_completed

    group = f"{stage}-{uuid.uuid4().hex}"
    waiting = {(group, unit.part): unit for unit in units}
    futures = client.map(process, units, [context] * len(units), key=list(waiting), pure=False, retries=0)
    completed = as_completed(futures)
    # From here on each future is held once only: Dask computes a dead worker's results again while one is.
    futures.clear()
    for future in completed:
        yield waiting.pop(future.key), _result(future)
        future.release()


def _result(future: "Future") -> Report | BaseException:
    # Not decided by the future's status: a worker that dies right after a unit takes the report with it,
    # and Dask then runs the unit again while this waits.
    try:
        return future.result()
    except Exception as error:
        return error


@contextlib.contextmanager
def _connected(workers: int | None, scheduler: str | None, threads: int) -> Iterator["Client"]:
    # Imported here: a second that `harcache --help` and a run with nothing to do need not pay.
    import dask
    from distributed import Client, LocalCluster

    address = scheduler or dask.config.get("scheduler-address", None)
    if address:
        with _client_at(address) as client:
            yield client
        return
    count, cores, memory = _local_workers(workers)
    with (
        dask.config.set(_local_settings(max(1, cores // count))),
        LocalCluster(
            n_workers=count,
            threads_per_worker=threads,
            processes=True,
            memory_limit=memory // count,
            # Any free port, which nobody is told: a second run would complain about a fixed one.
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _client_at(address: str) -> "Client":
    from distributed import Client

    try:
        return Client(address)
    except (OSError, ValueError) as error:
        raise HarcacheError(
            f"no Dask scheduler answers at {address} ({error}); start one, or leave --scheduler out"
        ) from error


def _local_workers(workers: int | None) -> tuple[int, int, int]:
    """Return the number of workers, and the cores and bytes of memory that this process may use."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    fitting = max(1, min(CPU_COUNT, MEMORY_LIMIT // _MEMORY_PER_WORKER))
    return workers or fitting, CPU_COUNT, MEMORY_LIMIT


def _local_settings(threads: int) -> dict[str, Any]:
    # The heartbeat's time to live stays at Dask's 5 minutes: less kills healthy tasks that hold the GIL.
    return {
        # The engine itself tries once more, and alone: Dask would count a death against waiting units too.
        "distributed.scheduler.allowed-failures": 0,
        # Nothing is handed to a worker ahead, as far as Dask can, so that few units are suspected.
        "distributed.scheduler.worker-saturation": 1.0,
        # After this time Dask drops a worker that is just then starting again, for good, and without any
        # worker a run would wait for ever.
        "distributed.deploy.lost-worker-timeout": "1000 hours",
        "distributed.nanny.pre-spawn-environ": dict.fromkeys(_THREAD_VARIABLES, threads),
    }


def _traceback_of(error: BaseException) -> BaseException | None:
    # A traceback helps with a defect of the program alone.
    return None if isinstance(error, HarcacheError) or _killed_worker(error) else error


def _killed_worker(error: BaseException) -> bool:
    return type(error).__name__ == "KilledWorker"


def _describe(unit: Unit, error: BaseException) -> str:
    names = [clip.id for clip in unit.clips]
    more = f" and {len(names) - _NAMED_CLIPS} more" if len(names) > _NAMED_CLIPS else ""
    if _killed_worker(error):
        what = "its worker process died twice (out of memory, or a crash in a library)"
    elif isinstance(error, HarcacheError):
        what = str(error)
    else:
        what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"part {unit.part} (clips {', '.join(names[:_NAMED_CLIPS])}{more}): {what}"


def _summary(stage: str, errors: Sequence[tuple[Unit, BaseException]], units: int) -> HarcacheError:
    parts = "; ".join(_describe(unit, error) for unit, error in errors[:_NAMED_PARTS])
    more = f"; and {len(errors) - _NAMED_PARTS} more, named above" if len(errors) > _NAMED_PARTS else ""
    return HarcacheError(
        f"{stage}: {len(errors)} of {units} parts could not be made. {parts}{more}. "
        "The other parts are kept; run again to make only these"
    )

"""Hands units to Dask's workers and finds out what became of each, whatever became of the workers.

Workers tell when they begin a unit, so that it can be ended from here when they hang or stand still, and
send its report ahead, so that it is not lost with them. What ends workers again is searched clip by clip.
"""

import logging
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from harcache.pipeline.base.errors import HarcacheError, StandstillError
from harcache.pipeline.base.text import printable
from harcache.pipeline.work.clusters import Site
from harcache.pipeline.work.plan import Unit

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Dispatch", "Overdue", "died"]

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_ALONE = 10.0
_SECONDS_TO_LOAD = 300.0
_SECONDS_TO_END_A_PROCESS = 30
_DIED = "its worker process died while it was tried by itself (out of memory, or a crash in a library)"
_ADVICE = "mend or remove it, or run with --retry-failed and"
_log = logging.getLogger(__name__)
# A network is one a process, and its backends don't work for two threads at once.
_one_at_a_time = threading.Lock()
_loaded: dict[bytes, tuple[Callable[[Unit, Any], Any], Any, Site | None]] = {}


class Overdue(HarcacheError):
    """A unit took longer than it may, and its worker process was ended."""


def died(result: object) -> bool:
    """Tell whether Dask gave a unit up because its worker process died."""
    return type(result).__name__ == "KilledWorker"


class Dispatch:
    """Runs ``process(unit, context)`` for a stage's units on the workers of a cluster.

    ``unit_timeout``: seconds, or None. ``gpu``: whether units ask for the resource GPU where workers offer
    it. ``site``: what workers must find; None where they are this machine's.
    """

    def __init__(
        self,
        client: "Client",
        process: Callable[[Unit, Any], Any],
        context: Any,
        stage: str,
        unit_timeout: float | None,
        gpu: bool,
        site: Site | None,
    ) -> None:
        self._client, self._stage, self._timeout, self._gpu = client, stage, unit_timeout, gpu
        self._topic = f"harcache-{uuid.uuid4().hex}"
        self._site, self._known = site, set[str]()
        # As bytes, like the units: Dask itself would import a stage's modules in the scheduler, and where
        # workers send their heartbeats; loading PyTorch takes longer than these may be late.
        self._task = pickle.dumps((process, context, site))
        self._begun: dict[str, tuple[str, float]] = {}
        self._reports: dict[str, Any] = {}
        self._worked = self._stopped = False
        self._threads, self._alone_since = 1, time.monotonic()
        client.subscribe_topic(self._topic, self._note)

    def run(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, Any]]:
        """Give each unit with its report, or with the exception that it ended in.

        A unit whose worker died is tried once more, since the cause may have been another unit. One that was
        overdue, or whose worker died again, is tried clip by clip, and made without those that did it again.
        """
        while not self._find_workers():
            time.sleep(0.1)
        again: list[Unit] = []
        suspects: list[tuple[Unit, BaseException]] = []
        for unit, result in self._ended(units, self._timeout):
            if died(result):
                self._warn(f"part {unit.part} was lost with its worker process; it is tried again at the end")
                again.append(unit)
            elif isinstance(result, Overdue):
                self._warn(f"part {unit.part}: {result}; its clips are tried one by one at the end")
                suspects.append((unit, result))
            else:
                yield unit, result
        # A dead worker may have held other units too; one at a time, a second death has but one cause.
        for unit in again:
            result = self._alone(unit, self._timeout)
            if result is None:
                return
            if died(result) or isinstance(result, Overdue):
                suspects.append((unit, result))
            else:
                yield unit, result
        for unit, met in suspects:
            result = self._clip_by_clip(unit, met)
            if result is None:
                return
            yield unit, result

    def _clip_by_clip(self, unit: Unit, met: BaseException) -> Any:
        given_up = []
        for clip, inputs in zip(unit.clips, unit.fingerprints, strict=True):
            if len(unit.clips) > 1:
                met = self._alone(Unit(unit.part, (clip,), (inputs,), trial=True), self._timeout)
            if isinstance(met, StandstillError):
                return met
            if isinstance(met, Overdue):
                given_up.append((clip.id, f"{met}; {_ADVICE} more time"))
            elif died(met):
                given_up.append((clip.id, f"{_DIED}; {_ADVICE} more memory a worker"))
        if not self._worked and died(met):
            # Then it need not be the clips.
            return met
        for id, reason in given_up:
            self._warn(f"clip {id}: {reason}")
        # Together they may take as long as each of them may.
        limit = self._timeout and self._timeout * max(1, len(unit.clips) - len(given_up))
        return self._alone(replace(unit, given_up=tuple(given_up)), limit)

    def _alone(self, unit: Unit, limit: float | None) -> Any:
        """Return how a unit ended that is the only one, or None when no more are begun."""
        return next((result for _, result in self._ended([unit], limit)), None)

    def _ended(self, units: Iterable[Unit], limit: float | None) -> Iterator[tuple[Unit, Any]]:
        remaining = iter(units)
        ended: SimpleQueue[str] = SimpleQueue()
        waiting: dict[str, tuple[Unit, Future]] = {}
        next_look = time.monotonic()
        while True:
            # No worker gets a second unit: Dask would count it as lost, and so suspect, with the first one.
            free = 0 if self._stopped else self._threads - len(waiting)
            waiting |= self._submit(list(islice(remaining, max(0, free))), ended)
            if not waiting:
                return
            for key in _taken(ended):
                if key not in waiting:
                    continue
                unit, future = waiting.pop(key)
                result = self._result(key, future)
                self._begun.pop(key, None)
                if isinstance(result, StandstillError):
                    self._stop(waiting)
                elif died(result):
                    self._find_workers()
                yield unit, result
            if time.monotonic() >= next_look:
                self._find_workers()
                yield from self._overdue(waiting, limit)
                next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS

    def _submit(self, units: list[Unit], ended: "SimpleQueue[str]") -> dict[str, tuple[Unit, "Future"]]:
        if not units:
            return {}
        resources = {"GPU": 1} if self._gpu and self._gpus_are_offered() else None
        keys = [f"{self._stage}-{unit.part}-{uuid.uuid4().hex}" for unit in units]
        futures = self._client.map(
            _on_worker,
            [pickle.dumps(unit) for unit in units],
            task=self._task,
            topic=self._topic,
            key=keys,
            pure=False,
            resources=resources,
        )
        for future in futures:
            future.add_done_callback(lambda future: ended.put(future.key))
        # Held here alone, until read: Dask computes a dead worker's results again while they are held.
        return dict(zip(keys, zip(units, futures, strict=True), strict=True))

    def _result(self, key: str, future: "Future") -> Any:
        if key in self._reports:
            self._worked = True
            return self._reports.pop(key)
        try:
            return future.result()
        except CancelledError as error:
            raise self._gone() from error
        except ImportError as error:
            return StandstillError(
                f"the scheduler or a worker lacks a module ({error}); install the same there as here"
            )
        except Exception as error:
            return error

    def _overdue(
        self, waiting: dict[str, tuple[Unit, "Future"]], limit: float | None
    ) -> Iterator[tuple[Unit, Any]]:
        latest = time.monotonic() - (limit or float("inf"))
        late = [key for key in waiting if key in self._begun and self._begun[key][1] < latest]
        for key in late:
            unit, future = waiting.pop(key)
            worker, _ = self._begun.pop(key)
            # Else Dask would run it again.
            future.cancel()
            self._client.restart_workers([worker], timeout=_SECONDS_TO_END_A_PROCESS, raise_for_error=False)
            yield unit, Overdue(f"took longer than {limit:g} s (--unit-timeout), so its process was ended")

    def _stop(self, waiting: dict[str, tuple[Unit, "Future"]]) -> None:
        """Take back what no worker has begun."""
        self._stopped = True
        for key in [key for key in waiting if key not in self._begun]:
            waiting.pop(key)[1].cancel()

    def _find_workers(self) -> int:
        """Return how many units workers can run at a time; when it was none for a while, say so once."""
        try:
            if self._client.status != "running":
                raise self._gone()
            workers = self._client.nthreads()
            if self._site and workers.keys() - self._known:
                self._look_at(list(workers.keys() - self._known))
        except OSError as error:
            raise self._gone() from error
        self._known = set(workers)
        threads, now = sum(workers.values()), time.monotonic()
        if threads:
            self._alone_since = now
        elif now - self._alone_since > _SECONDS_ALONE:
            self._warn(f"no worker is connected to {self._client.scheduler.address}; waiting for one")
            self._alone_since = float("inf")
        # With no worker at all, one unit waits for the first that comes.
        self._threads = max(1, threads)
        return threads

    def _look_at(self, workers: list[str]) -> None:
        # Dask's worker itself ends when it gets a unit that it can't import the function of, again and again.
        for worker, found in self._client.run(_is_here, workers=workers, on_error="return").items():
            # A worker that has died since is no matter.
            if isinstance(found, Exception) and not isinstance(found, OSError):
                raise StandstillError(
                    f"worker {worker} lacks harcache ({found}); install it there as it is here"
                )

    def _gpus_are_offered(self) -> bool:
        workers = self._client.scheduler_info()["workers"].values()
        return any(worker["resources"].get("GPU") for worker in workers)

    def _gone(self) -> HarcacheError:
        return HarcacheError(
            f"{self._stage}: the connection to the Dask scheduler is lost; what was finished is kept: "
            "start a scheduler and run again"
        )

    def _note(self, event: tuple[float, dict[str, Any]]) -> None:
        message = event[1]
        key, worker = message["key"], message["worker"]
        if "report" in message:
            self._reports[key] = pickle.loads(message["report"])
            return
        if key in self._begun and worker != self._begun[key][0]:
            self._warn(
                f"part {message['part']} was lost with worker {self._begun[key][0]}; {worker} makes it"
            )
        self._begun[key] = (worker, time.monotonic() + message.get("grace", 0.0))

    def _warn(self, message: str) -> None:
        _log.warning("%s: %s", self._stage, printable(message))


def _taken(ended: "SimpleQueue[str]") -> list[str]:
    """Wait for a key, and take all that are there then."""
    try:
        keys = [ended.get(timeout=_SECONDS_BETWEEN_LOOKS)]
    except Empty:
        return []
    while not ended.empty():
        keys.append(ended.get())
    return keys


def _is_here() -> bool:
    return True


def _on_worker(pickled: bytes, task: bytes, topic: str) -> Any:
    from distributed import get_worker

    unit, worker = pickle.loads(pickled), get_worker()
    with _one_at_a_time:
        message = {"key": worker.get_current_task(), "worker": worker.address, "part": unit.part}
        if task not in _loaded:
            # No clip is to blame for the time that modules take to load, once a process.
            worker.log_event(topic, message | {"grace": _SECONDS_TO_LOAD})
            _loaded.clear()
            _loaded[task] = pickle.loads(task)
        process, context, site = _loaded[task]
        worker.log_event(topic, message)
        if site is not None:
            site.enter(worker.address)
        report = process(unit, context)
    worker.log_event(topic, message | {"report": pickle.dumps(report)})
    return report

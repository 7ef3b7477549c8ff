"""How far a long loop is, as a bar on a terminal or a line every ten seconds, and what is worth a notice.

Written to stderr, so that what a command prints on stdout can be read by another program.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from harcache.pipeline.base.layers import is_there
from harcache.pipeline.base.tables import json_text
from harcache.pipeline.base.text import printable

if TYPE_CHECKING:
    from rich import progress as rich_progress

__all__ = ["Progress", "as_notices", "complain", "notice", "progress", "quietly", "say", "say_json"]

_SECONDS_BETWEEN_LINES = 10.0
_is_quiet = False


class Progress(Protocol):
    """What the loop sees of its display."""

    def advance(self, count: int = 1, failed: int = 0) -> None:
        """Count ``count`` more as done, ``failed`` of them as failed."""


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Have neither progress nor notices shown in the block."""
    global _is_quiet
    before, _is_quiet = _is_quiet, True
    try:
        yield
    finally:
        _is_quiet = before


def say(*lines: str) -> None:
    """Print lines of a result on standard output; what can't be seen in them, line breaks too, is escaped."""
    for line in lines:
        print(printable(line), flush=True)


def say_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    print(json_text(value), flush=True)


def complain(text: str) -> None:
    """Print on standard error, in one line, what failed while the command goes on."""
    print(printable(text), file=sys.stderr, flush=True)


def notice(text: str) -> None:
    """Tell the user in one line what is neither a result nor an error."""
    if not _is_quiet:
        print(printable(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def as_notices() -> Iterator[None]:
    """Show what the block prints on standard output as notices are: on stderr, or not at all."""
    with (
        open(os.devnull, "w") if _is_quiet else contextlib.nullcontext(sys.stderr) as shown,
        contextlib.redirect_stdout(shown),
    ):
        yield


@contextlib.contextmanager
def progress(total: int, label: str, unit: str = "clips", done: int = 0) -> Iterator[Progress]:
    """Show ``label``, how many of ``total`` are done (``done`` were before), rate, time left, failures."""
    label = printable(label)
    if _is_quiet:
        yield _Silence()
    # Readers of caches have no `rich`, and lines tell as much.
    elif sys.stderr.isatty() and is_there("rich"):
        with _bar(total, label, unit, done) as bar:
            yield bar
    else:
        lines = _Lines(total, label, unit, done)
        yield lines
        lines.close()


class _Silence:
    def advance(self, count: int = 1, failed: int = 0) -> None:
        pass


class _Lines:
    def __init__(self, total: int, label: str, unit: str, done: int) -> None:
        self._total, self._label, self._unit = total, label, unit
        self._before = self._done = self._printed = done
        self._failed = 0
        self._start = self._last_line = time.monotonic()

    def advance(self, count: int = 1, failed: int = 0) -> None:
        self._done += count
        self._failed += failed
        if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._print()

    def close(self) -> None:
        if self._done > self._printed:
            self._print()

    def _print(self) -> None:
        self._last_line, self._printed = time.monotonic(), self._done
        rate = (self._done - self._before) / max(self._last_line - self._start, 1e-3)
        left = f"{(self._total - self._done) / rate:.0f} s left" if rate else "time left unknown"
        failed = f", {self._failed} failed" if self._failed else ""
        print(
            f"{self._label}: {self._done}/{self._total} {self._unit}, {rate:.1f} a second, {left}{failed}",
            file=sys.stderr,
            flush=True,
        )


@contextlib.contextmanager
def _bar(total: int, label: str, unit: str, done: int) -> Iterator[Progress]:
    # Imported here, since most commands that end at once show no bar.
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn(f"{unit}  {{task.fields[rate]}}"),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[failures]}"),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as display:
        yield _Bar(display, display.add_task(label, total=total, completed=done, rate="", failures=""))


class _Bar:
    def __init__(self, display: "rich_progress.Progress", task: "rich_progress.TaskID") -> None:
        self._display, self._task = display, task
        self._start = time.monotonic()
        self._count = self._failed = 0

    def advance(self, count: int = 1, failed: int = 0) -> None:
        self._count += count
        self._failed += failed
        rate = self._count / max(time.monotonic() - self._start, 1e-3)
        failures = f"{self._failed} failed" if self._failed else ""
        self._display.update(self._task, advance=count, rate=f"{rate:.1f}/s", failures=failures)

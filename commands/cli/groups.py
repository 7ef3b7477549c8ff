"""Groups of commands: the outermost one, which answers errors, and commands that are imported on demand."""

import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import click

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.layers import explained
from harcache.pipeline.base.text import printable

__all__ = ["LazyCommands", "OutermostGroup"]

_INTERRUPTED = 130  # as a shell says it of a process that Ctrl-C ended
# Commands that need no videos: of packages that two layers bring, theirs is named.
_ON_CACHES = ("evaluate", "export", "models", "train", "weights")


class OutermostGroup(click.Group):
    """Prints an error that is meant for the user as one line; others keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except (HarcacheError, OSError) as error:
            # A reader that went away, such as `head`, is no error: click ends quietly.
            if ctx.params["debug"] or isinstance(error, BrokenPipeError):
                raise
            raise click.ClickException(_in_one_line(error)) from error
        except ImportError as error:
            layer = "train" if ctx.invoked_subcommand in _ON_CACHES else "extract"
            told = explained(error, layer)
            if told is None or ctx.params["debug"]:
                raise
            raise click.ClickException(str(told)) from error
        except KeyboardInterrupt:
            click.echo("Stopped; what is finished is kept, and the same command goes on.", err=True)
            ctx.exit(_INTERRUPTED)


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError):
        where = f"{_name(error.filename)}: " if error.filename is not None else ""
        what = f"{where}{error.strerror or error}; see that it is there, yours to use, and has room"
    else:
        what = " ".join(str(error).splitlines())
    return printable(what)


def _name(filename: str | bytes | int) -> str | int:
    return os.fsdecode(filename) if isinstance(filename, bytes) else filename


class LazyCommands(Mapping[str, click.Command]):
    """Commands by name, imported as they are looked up; ``places``: "module:attribute" of each."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> click.Command:
        module, _, attribute = self._places[name].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command), f"{self._places[name]} is not a command"
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

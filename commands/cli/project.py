"""Commands that work on a project, which is found from any folder in it."""

from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from harcache.commands.running import is_first_process
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.progress import notice
from harcache.pipeline.base.project import find_project

__all__ = ["OptionalProjectCommand", "ProjectCommand"]


class ProjectCommand(click.Command):
    """Runs in the project's folder, wherever in the project it is called.

    Relative paths that were typed mean what they mean where they were typed; those of the environment and
    defaults are relative to the project, as they are when DVC calls the command.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Go to the project's folder, then run the command."""
        here = Path.cwd()
        project = self.find_project(ctx, here)
        if project is not None and project != here:
            self._enter(project, here, ctx)
        return super().invoke(ctx)

    def find_project(self, ctx: click.Context, here: Path) -> Path | None:
        """Return the project's folder, or None to run where the command is called.

        Raises HarcacheError for none.
        """
        return here if _is_here(here, ctx.params) else find_project(here)

    def _enter(self, project: Path, here: Path, ctx: click.Context) -> None:
        if is_first_process():
            notice(f"the project is {project}, above this folder; paths in messages are relative to it")
        for parameter in self.params:
            name = parameter.name or ""
            typed = ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE
            if typed and isinstance(parameter.type, click.Path):
                ctx.params[name] = _from(here, ctx.params[name])
        ctx.with_resource(chdir(project))


class OptionalProjectCommand(ProjectCommand):
    """Runs in the project's folder if it is called in a project, else where it is called."""

    def find_project(self, ctx: click.Context, here: Path) -> Path | None:
        """Return the project's folder, or None."""
        try:
            return super().find_project(ctx, here)
        except HarcacheError:
            return None


def _is_here(folder: Path, given: Mapping[str, Any]) -> bool:
    """Whether ``folder`` has what a command works on: parameters, or the caches of the dataset that is named.

    Caches alone are enough for commands that only read them.
    """
    dataset = given.get("dataset")
    caches = isinstance(dataset, str) and dataset != "" and (folder / "data" / dataset).is_dir()
    return caches or (folder / "params.yaml").is_file()


def _from(folder: Path, value: Any) -> Any:
    """Return the typed path, or each of several, as one that means the same in every folder."""
    if isinstance(value, tuple):
        return tuple(_from(folder, one) for one in value)
    return folder / value

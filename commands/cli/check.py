"""check: what is installed, and what the datasets lack."""

from pathlib import Path

import click

from harcache.commands.cli.options import json_option, weights_option
from harcache.commands.cli.project import OptionalProjectCommand
from harcache.pipeline.base.errors import HarcacheError

__all__ = ["check"]


@click.command(cls=OptionalProjectCommand)
@click.option(
    "--params",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File whose datasets to check. [default: params.yaml, where there is one]",
)
@weights_option
@json_option
@click.option(
    "--mmpose", is_flag=True, help="Only print the file that installs mmpose: pip install --no-deps -r FILE"
)
def check(path: Path | None, weights_dir: Path | None, as_json: bool, mmpose: bool) -> None:
    """Show which parts are installed, their versions, the devices, and what datasets still need.

    Ends with 1 if a dataset needs a package, a file or weights that are not there; each line names the
    command that brings it. Weights that are fetched at first use are listed and count as there.

    Example: harcache check --params params.yaml
    """
    from harcache.commands import check as stage
    from harcache.pipeline.base.progress import say, say_json

    if mmpose:
        click.echo(stage.mmpose_requirements())
        return
    found = stage.check(path or Path("params.yaml"), path is not None, weights_dir)
    if as_json:
        say_json(stage.as_json(found))
    else:
        say(*stage.describe(found).split("\n"))
    lacking = [name for name, lines in found.datasets.items() if lines]
    if lacking:
        raise HarcacheError(f"something is missing for {', '.join(lacking)}; the lines above name what to do")

"""init: a project of one's own."""

from pathlib import Path

import click

from harcache.commands.init import DEMO, LAYOUTS

__all__ = ["init"]


@click.command()
@click.argument("folder", metavar="[DIR]", default=Path(), type=click.Path(path_type=Path))
@click.option("--layout", type=click.Choice(list(LAYOUTS)), help="How your videos lie. [default: folder]")
@click.option("--demo", is_flag=True, help="Create the demo's project instead, and draw its videos.")
def init(folder: Path, layout: str | None, demo: bool) -> None:
    """Create a project in DIR, by default here: dvc.yaml, params.yaml, a Git and a DVC repository.

    Files that are there are kept, and named.

    Example: harcache init lab --layout ntu60
    """
    if demo and layout is not None:
        raise click.UsageError("--demo has a layout of its own: leave --layout out.")
    from harcache.commands import init as projects
    from harcache.pipeline.base.progress import say

    say(*str(projects.init(folder, DEMO if demo else layout or "folder")).splitlines())
    if demo:
        projects.draw_demo(folder)

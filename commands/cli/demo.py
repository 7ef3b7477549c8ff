"""demo: the videos of the demo."""

from pathlib import Path

import click

from harcache.commands.cli.project import OptionalProjectCommand

__all__ = ["demo"]


@click.command(cls=OptionalProjectCommand)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("videos/demo"),
    help="Folder for the videos.",
)
@click.option("--seed", default=0, help="Other seeds draw other performers and motions.")
@click.option(
    "--workers",
    type=click.IntRange(0),
    envvar="HARCACHE_WORKERS",
    show_envvar=True,
    help="Processes; 0 counts as 1. [default: one a core]",
)
def demo(out: Path, seed: int, workers: int | None) -> None:
    """Draw the demo's videos of figures that act, with the truth beside them.

    Example: harcache demo --out videos/demo
    """
    from harcache.pipeline.base.progress import say
    from harcache.pipeline.datasets.demo import DemoSpec, generate_demo

    made = generate_demo(out, DemoSpec(seed), None if workers is None else max(1, workers))
    say(f"{out}: {made} videos made, the others were there")

"""report: a dataset in one HTML file."""

from pathlib import Path

import click

from harcache.commands.cli.options import dataset_argument, videos_option
from harcache.commands.cli.project import ProjectCommand

__all__ = ["report"]


@click.command(cls=ProjectCommand)
@dataset_argument
@videos_option
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="File. [default: report/DATASET.html]"
)
def report(dataset: str, videos: Path, out: Path | None) -> None:
    """Write one HTML file that shows a dataset: clips, failures, storage, training, accuracy, pictures.

    It holds all that it shows, works without a network, and says what is not there yet.

    Example: harcache report demo
    """
    from harcache.stages import report as stage
    from harcache.stages.shared.workspace import Workspace

    workspace = Workspace.under(Path(), dataset, videos)
    stage.run(workspace, out or Path("report") / f"{dataset}.html")

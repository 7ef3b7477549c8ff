"""preview: pictures and short videos of what is stored."""

from pathlib import Path

import click

from harcache.commands.cli.options import (
    dataset_argument,
    device_option,
    json_option,
    overwrite_option,
    videos_option,
)
from harcache.commands.cli.project import ProjectCommand

__all__ = ["preview"]


@click.command(cls=ProjectCommand)
@dataset_argument
@click.argument("clips", nargs=-1, metavar="[CLIP]...")
@videos_option
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder. [default: data/DATASET/preview]"
)
@overwrite_option
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="Network whose attention and classes to show."
)
@click.option("--count", type=click.IntRange(1), default=4, help="Clips to choose where none are named.")
@click.option("--columns", type=click.IntRange(1, 16), default=6, help="Frames in a picture.")
@device_option
@json_option
def preview(
    dataset: str,
    clips: tuple[str, ...],
    videos: Path,
    out: Path | None,
    overwrite: bool,
    checkpoint: Path | None,
    count: int,
    columns: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Draw what is stored of clips: persons, keypoints, crops, heatmaps; a picture and a short video of each.

    Without CLIP a few are chosen, from classes evenly spread. What is missing, such as the videos, is left
    out and named.

    Example: harcache preview demo --checkpoint data/demo/training/epam/network.pt
    """
    from harcache.commands import preview as stage
    from harcache.pipeline.params import load_params
    from harcache.stages.shared.workspace import Workspace, choose_device

    params = load_params("params.yaml", dataset=dataset)
    workspace = Workspace.under(Path(), dataset, videos)
    # The default folder holds previews alone.
    overwrite |= out is None
    options = stage.Options(out or workspace.data / "preview", checkpoint, count, columns, overwrite)
    used = "cpu" if checkpoint is None else choose_device(device)
    stage.run(clips, params, workspace, options, used, as_json)

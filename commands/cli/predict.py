"""predict: what is done in videos of one's own."""

from pathlib import Path
from typing import Any

import click

from harcache.commands.cli.options import device_option, overwrite_option, weights_option
from harcache.commands.cli.project import ProjectCommand

__all__ = ["predict"]


class _Predict(ProjectCommand):
    """Works on a project only if it is to take a dataset's parameters from there."""

    def find_project(self, ctx: click.Context, here: Path) -> Path | None:
        """Return the project's folder, or None to run where the command is called."""
        return super().find_project(ctx, here) if ctx.params["dataset"] is not None else None


@click.command(cls=_Predict)
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="The network to ask.")
@click.option("--dataset", help="Dataset whose params.yaml counts. [default: as the checkpoint was trained]")
@click.option(
    "--window",
    type=click.FloatRange(0, min_open=True),
    help="Seconds that are taken as a clip. [default: the whole video]",
)
@click.option(
    "--stride",
    type=click.FloatRange(0, min_open=True),
    help="Seconds from one window to the next. [default: half a window]",
)
@click.option("--top", type=click.IntRange(1), default=5, help="Classes to tell, the likeliest first.")
@click.option(
    "--overlay",
    type=click.Path(path_type=Path),
    help="Video to draw persons, attention and classes into; a folder for several.",
)
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@weights_option
@device_option
def predict(
    videos: tuple[Path, ...],
    checkpoint: Path,
    dataset: str | None,
    weights_dir: Path | None,
    device: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Tell what is done in VIDEOS, files and folders of them, that no stage has seen.

    A video that can't be read is named at the end, with exit code 1; the others are told all the same.

    Example: harcache predict walk.mp4 --checkpoint network.pt --overlay out.mp4
    """
    if options["stride"] is not None and options["window"] is None:
        raise click.UsageError("--stride is from one window to the next: give --window too.")
    from harcache.commands import predict as stage
    from harcache.pipeline.params import load_params
    from harcache.stages.shared.workspace import Workspace, choose_device

    params = None if dataset is None else load_params("params.yaml", dataset=dataset)
    workspace = None if dataset is None else Workspace.under(Path(), dataset, Path("videos"))
    asked = stage.Options(**options)
    stage.run(videos, checkpoint, params, workspace, asked, weights_dir, choose_device(device), as_json)

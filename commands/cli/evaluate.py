"""evaluate: how right the networks are."""

from pathlib import Path
from typing import Any

import click

from harcache.commands.cli.options import json_option, stage_options
from harcache.commands.cli.project import ProjectCommand
from harcache.commands.running import run_stage, stdout_for_json
from harcache.pipeline.base.progress import say_json

__all__ = ["evaluate"]


@click.command(cls=ProjectCommand)
@stage_options
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Network to measure instead, trained here or released; may be given again.",
)
@click.option("--amfi", is_flag=True, help="Measure AMFI-Net and its streams, not EPAM-Net and its.")
@click.option("--clips", type=click.IntRange(1), help="Samples of each clip to average, such as 10.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for results; with it or an option above, no other results are written.",
)
@json_option
def evaluate(
    checkpoints: tuple[Path, ...],
    amfi: bool,
    clips: int | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the trained networks on the test split, and the stages where the truth is known.

    Example: harcache evaluate demo
    """
    with stdout_for_json(as_json):
        if checkpoints or amfi or clips or out:
            metrics = run_stage("evaluate", checkpoints, clips, out, amfi, entry="run_custom", **options)
        else:
            metrics = run_stage("evaluate", **options)
    if as_json:
        say_json(metrics)

"""Arguments and options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from harcache.pipeline.base.errors import HarcacheError

__all__ = [
    "dataset_argument",
    "device_option",
    "json_option",
    "overwrite_option",
    "results_option",
    "stage_options",
    "videos_option",
    "weights_option",
]


def _dataset_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete a dataset's name; without a readable params.yaml there is none to offer."""
    from harcache.pipeline.base.project import find_project
    from harcache.pipeline.params import dataset_names

    try:
        here = Path.cwd()
        project = here if (here / "params.yaml").is_file() else find_project(here)
        return [name for name in dataset_names(project / "params.yaml") if name.startswith(incomplete)]
    except HarcacheError:
        return []


dataset_argument = click.argument("dataset", shell_complete=_dataset_names)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace files that are there already.")
results_option = click.option(
    "--json", "out", type=click.Path(path_type=Path, dir_okay=False), help="File for the results."
)
videos_option = click.option(
    "--videos",
    type=click.Path(path_type=Path),
    default=Path("videos"),
    envvar="HARCACHE_VIDEOS",
    show_envvar=True,
    help="Folder that holds a folder of videos for each dataset.",
)
weights_option = click.option(
    "--weights-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="HARCACHE_WEIGHTS_DIR",
    show_envvar=True,
    help="Folder to look for weights in, and to fetch them into.",
)
device_option = click.option(
    "--device",
    envvar="HARCACHE_DEVICE",
    show_envvar=True,
    help="cpu, cuda, cuda:1. [default: the GPU]",
)


def stage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where files lie and how work runs; nothing here changes a result."""
    options = [
        dataset_argument,
        videos_option,
        weights_option,
        device_option,
        click.option(
            "--workers",
            type=int,
            envvar="HARCACHE_WORKERS",
            show_envvar=True,
            help="Processes; 0: none beside this one. [default: one a core, or one a GPU]",
        ),
        click.option(
            "--scheduler",
            envvar="HARCACHE_SCHEDULER",
            show_envvar=True,
            help="Address of a running Dask scheduler, or slurm: have SLURM start the workers.",
        ),
        click.option(
            "--unit-timeout",
            type=click.FloatRange(0, min_open=True),
            envvar="HARCACHE_UNIT_TIMEOUT",
            show_envvar=True,
            metavar="SECONDS",
            help="End the worker of a part that takes longer, and find the clip that hangs. [default: never]",
        ),
        click.option(
            "--max-failed",
            type=click.FloatRange(0, 1),
            default=0.01,
            envvar="HARCACHE_MAX_FAILED",
            show_envvar=True,
            help="Part of the clips that may fail.",
        ),
        click.option(
            "--max-skipped",
            type=click.FloatRange(0, 1),
            envvar="HARCACHE_MAX_SKIPPED",
            show_envvar=True,
            help="Maximum fraction of clips skipped unasked. [default: max_skipped of params.yaml]",
        ),
        click.option(
            "--retry-failed",
            is_flag=True,
            envvar="HARCACHE_RETRY_FAILED",
            show_envvar=True,
            help="Try clips again that failed before.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command

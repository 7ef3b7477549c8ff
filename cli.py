"""The command line: each command names a stage and where its files lie; what it does is in `stages`.

Modules are imported by the command that needs them, so that help and errors come at once.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.errors import HarcacheError

__all__ = ["main"]

_STAGES = {
    "index": "Look at the videos and write the manifest; what did not change is not opened again.",
    "detect": "Find the persons of every frame.",
    "pose": "Estimate their keypoints and link them over time.",
    "crop": "Box each clip's persons.",
    "heatmap": "Draw the pose heatmaps into heatmaps.zarr.",
    "rgb": "Crop and encode the frames into rgb.zarr.",
    "evaluate": "Measure the trained networks on the test split, and the stages where the truth is known.",
}
# The others need not wait until PyTorch is loaded.
_ON_DEVICE = ("detect", "pose", "train", "evaluate")


class _Group(click.Group):
    """Prints an error that is meant for the user as one line; others keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except HarcacheError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="harcache")
def main() -> None:
    """Turn videos of people into caches, and train action recognition from them.

    `dvc repro` calls these commands in order; each can also be run by itself. They work in the folder of
    dvc.yaml and params.yaml, and a command that is run again does only what is missing.
    """


def _stage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where files lie and how work runs; nothing here changes a result."""
    options = [
        click.argument("dataset"),
        click.option(
            "--videos",
            type=click.Path(path_type=Path),
            default=Path("videos"),
            envvar="HARCACHE_VIDEOS",
            show_envvar=True,
            help="Folder that holds a folder of videos for each dataset.",
        ),
        click.option(
            "--weights-dir",
            type=click.Path(path_type=Path, file_okay=False),
            envvar="HARCACHE_WEIGHTS_DIR",
            show_envvar=True,
            help="Folder to look for weights in, and to fetch them into.",
        ),
        click.option(
            "--device",
            envvar="HARCACHE_DEVICE",
            show_envvar=True,
            help="cpu, cuda, cuda:1. [default: the GPU]",
        ),
        click.option(
            "--workers",
            type=int,
            envvar="HARCACHE_WORKERS",
            show_envvar=True,
            help="Processes; 0: none beside this one. [default: one a core]",
        ),
        click.option("--scheduler", help="Address of a running Dask scheduler."),
        click.option(
            "--max-failed", type=click.FloatRange(0, 1), default=0.01, help="Part of the clips that may fail."
        ),
        click.option("--retry-failed", is_flag=True, help="Try clips again that failed before."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _run(
    stage: str,
    *what: str,
    dataset: str,
    videos: Path,
    device: str | None,
    workers: int | None,
    scheduler: str | None,
    **options: Any,
) -> None:
    """Run ``stages.<stage>.run(*what, params, workspace, engine)`` while holding the dataset's lock."""
    from pipeline.engine import Engine
    from pipeline.params import load_params
    from pipeline.parts import dataset_lock
    from stages.workspace import Workspace, choose_device

    params = load_params("params.yaml", dataset=dataset)
    if stage in _ON_DEVICE:
        options["device"] = choose_device(device)
    workspace = Workspace.under(Path(), dataset, videos, **options)
    run = importlib.import_module(f"stages.{stage}").run
    with dataset_lock(workspace.data), Engine(workers, scheduler) as engine:
        run(*what, params, workspace, engine)


def _add_stage(name: str, text: str) -> None:
    @main.command(name=name, help=f"{text}\n\nExample: harcache {name} demo")
    @_stage_options
    def command(**options: Any) -> None:
        _run(name, **options)


for _name, _text in _STAGES.items():
    _add_stage(_name, _text)


@main.command()
@click.argument("network", type=click.Choice(["pose", "rgb", "epam"]))
@_stage_options
def train(network: str, **options: Any) -> None:
    """Train a NETWORK from the caches: the pose stream, the RGB stream, or EPAM-Net from both.

    Example: harcache train epam demo
    """
    _run("train", network, **options)


@main.group()
def bench() -> None:
    """Measure on this machine, rivals side by side; docs/benchmarks.md has what was found."""


@main.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("videos/demo"))
@click.option("--seed", default=0)
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
    from pipeline.datasets.demo import DemoSpec, generate_demo

    made = generate_demo(out, DemoSpec(seed), None if workers is None else max(1, workers))
    click.echo(f"{out}: {made} videos made, the others were there")

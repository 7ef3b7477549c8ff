"""What is asked of networks by themselves: models, export, weights."""

from dataclasses import asdict
from pathlib import Path

import click

from harcache.commands.cli.options import json_option
from harcache.pipeline.base.progress import say, say_json

__all__ = ["export", "list_models", "weights"]


@click.command(name="models")
@click.option("--classes", type=click.IntRange(1), default=60, help="Actions to tell apart.")
@json_option
def list_models(classes: int, as_json: bool) -> None:
    """Print every network's parameters and multiply-adds, beside the figures that its paper prints.

    Example: harcache models
    """
    from harcache.models.summary import as_table, summarise

    found = summarise(classes)
    if as_json:
        say_json([asdict(one) for one in found])
    else:
        say(*as_table(found).split("\n"))


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--input",
    "sizes",
    type=(str, int, int, int),
    multiple=True,
    help="An input's name, frames, height and width. [default: as in training, else in the paper]",
)
def export(checkpoint: Path, out: Path, sizes: tuple[tuple[str, int, int, int], ...]) -> None:
    """Write a trained network for other programs: OUT ends with .pt2 (torch.export) or .onnx.

    Example: harcache export network.pt network.onnx --input rgb 4 64 64
    """
    from harcache.models.export import export_checkpoint

    shapes = export_checkpoint(
        checkpoint, out, {name: (frames, height, width) for name, frames, height, width in sizes}
    )
    taken = ", ".join(f"{name} (clips, {', '.join(map(str, shape))})" for name, shape in shapes.items())
    say(f"{out}: takes {taken}")


@click.group()
def weights() -> None:
    """Bring in the weights of action recognition networks that others trained."""


@weights.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
def import_weights(file: Path, out: Path) -> None:
    """Make a checkpoint of a FILE that the released EPAM-Net implementation wrote.

    Example: harcache weights import epam_net_ntu60_xsub.pth --out checkpoint.pt
    """
    from harcache.models.checkpoints import import_released_checkpoint

    network = import_released_checkpoint(file, out)
    say(f"{out}: {type(network).__name__} {network.config}")

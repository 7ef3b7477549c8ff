"""bench: measurements on this machine; one command per module of `harcache.benchmarks`."""

import importlib
from pathlib import Path
from typing import Any

import click

from harcache.commands.cli.options import results_option
from harcache.commands.running import let_threads_rest

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure on this machine, rivals side by side; docs/benchmarks.md has what was found."""


def _measure(what: str, out: Path | None, *sizes: Any) -> None:
    """Run ``benchmarks.<what>.measure(*sizes)``, print its table, and write its results where asked."""
    from harcache.benchmarks.timing import write_results

    module = importlib.import_module(f"harcache.benchmarks.{what}")
    results = module.measure(*sizes)
    click.echo(module.as_table(results))
    write_results(out, results)


@bench.command(name="extract")
@click.option("--device", default="cpu", help="cpu, cuda, cuda:1.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    help="Of the networks.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads that read ahead. [default: one a core]")
@results_option
def bench_extract(device: str, precision: str, threads: int | None, out: Path | None) -> None:
    """Time pose estimation and detection in batches beside mmpose and Ultralytics, frame by frame.

    Example: harcache bench extract --device cuda --json extract.json
    """
    _measure("extract", out, device, precision, threads)


@bench.command(name="loader")
@click.option("--clips", type=click.IntRange(1), default=24, help="Clips to film, of 96 frames each.")
@click.option("--rounds", type=click.IntRange(1), default=7, help="Times that each way is measured.")
@results_option
def bench_loader(clips: int, rounds: int, out: Path | None) -> None:
    """Time samples from the stores beside the released way, zarr-python, LitData, WebDataset and the limit.

    Example: harcache bench loader --json loader.json
    """
    _measure("loader", out, clips, rounds)


@bench.command(name="model")
@click.option("--size", type=click.IntRange(32), default=224, help="Pixels of a frame's side.")
@results_option
def bench_model(size: int, out: Path | None) -> None:
    """Time EPAM-Net and its Conv3d form, forward and in training, and find the memory that they need.

    Example: harcache bench model --json model.json
    """
    _measure("model", out, size)


@bench.command(name="train")
@click.option("--device", help="cpu, cuda, cuda:1. [default: the GPU]")
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16"]), default="bfloat16", help="Of the network."
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the network.")
@click.option("--batch", type=click.IntRange(1), help="Clips. [default: what fits, up to 96]")
@click.option("--clips", type=click.IntRange(1), default=64, help="Clips to film, of 96 frames each.")
@click.option("--seconds", type=click.FloatRange(0), default=15, help="How long to train in each way.")
@results_option
def bench_train(
    device: str | None,
    precision: str,
    compiled: bool,
    batch: int | None,
    clips: int,
    seconds: float,
    out: Path | None,
) -> None:
    """Train EPAM-Net from the stores, in the released way, and without a loader; say how long each waits.

    Example: harcache bench train --compile --json train.json
    """
    let_threads_rest()
    _measure("train", out, device, precision, compiled, batch, clips, seconds)


@bench.command(name="scale")
@click.option("--clips", type=click.IntRange(16), default=114_480, help="NTU RGB+D 120 has 114,480.")
@results_option
def bench_scale(clips: int, out: Path | None) -> None:
    """Time what grows with the number of CLIPS, at that number and a sixteenth: on indices without frames.

    Example: harcache bench scale --json scale.json
    """
    _measure("scale", out, clips)


@bench.command(name="units")
@click.option("--units", type=click.IntRange(1), default=10_000, help="Parts, of 32 clips each.")
@results_option
def bench_units(units: int, out: Path | None) -> None:
    """Time what Dask takes to hand out a part and to get word of it, and see whether memory grows meanwhile.

    Example: harcache bench units --json units.json
    """
    _measure("units", out, units)

"""train: one network from the caches."""

import signal
import sys
from dataclasses import asdict
from typing import Any

import click

from harcache.commands.cli.options import json_option, stage_options
from harcache.commands.cli.project import ProjectCommand
from harcache.commands.running import is_first_process, let_threads_rest, run_stage, stdout_for_json
from harcache.pipeline.base.progress import say_json
from harcache.pipeline.params.networks import NETWORKS

__all__ = ["train"]


@click.command(cls=ProjectCommand)
@click.argument("network", type=click.Choice(NETWORKS))
@stage_options
@click.option("--compile", "compiled", is_flag=True, help="Compile the network, for a GPU; rounds otherwise.")
@click.option("--save-every", type=click.FloatRange(0), default=60, help="Seconds between states on disk.")
@click.option("--anew", is_flag=True, help="Start again, whatever state is there.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files as well.")
@json_option
def train(
    network: str,
    compiled: bool,
    save_every: float,
    anew: bool,
    tensorboard: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a NETWORK from the caches: EPAM-Net's streams pose and rgb, then epam from both.

    In the same way AMFI-Net's streams skeleton and resnet, then amfi, whose streams stay as they are.

    Stopped by whatever, it goes on from its last saved step when it is called again; SIGTERM has it finish
    and save its step first. torchrun and srun start it on several GPUs: see docs/training.md.

    Example: harcache train epam demo
    """
    training = {
        "compiled": compiled,
        "save_every": save_every,
        "restart": anew,
        "tensorboard": tensorboard,
    }
    let_threads_rest()
    with stdout_for_json(as_json):
        summary = run_stage("train", network, training=training, **options)
    if as_json and is_first_process():
        say_json(asdict(summary))
    if summary.stopped is not None:
        # As a shell says it of a process that a signal ended.
        sys.exit(128 + signal.Signals[summary.stopped])

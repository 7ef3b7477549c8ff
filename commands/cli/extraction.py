"""The stages that make a dataset's tables and caches: index, detect, pose, crop, heatmap, rgb."""

from typing import Any

import click

from harcache.commands.cli.options import stage_options
from harcache.commands.cli.project import ProjectCommand
from harcache.commands.running import run_stage

__all__ = ["crop", "detect", "heatmap", "index", "pose", "rgb"]


def _stage(name: str, text: str) -> click.Command:
    @click.command(cls=ProjectCommand, name=name, help=f"{text}\n\nExample: harcache {name} demo")
    @stage_options
    def command(**options: Any) -> None:
        run_stage(name, **options)

    return command


index = _stage(
    "index", "Look at the videos that are new or changed, write the manifest, and say what was left out."
)
detect = _stage("detect", "Find the persons of every frame.")
pose = _stage("pose", "Estimate their keypoints and link them over time.")
crop = _stage("crop", "Box each clip's persons.")
heatmap = _stage("heatmap", "Draw the pose heatmaps into heatmaps.zarr.")
rgb = _stage("rgb", "Crop and encode the frames into rgb.zarr.")

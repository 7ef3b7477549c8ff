"""A dataset of a few short videos with crops written by hand: a store of it is built in a second."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from harcache.pipeline.clips import read_manifest
from harcache.pipeline.params import DatasetParams, FolderIndexParams, RgbParams
from harcache.pipeline.video.writing import write_video
from harcache.pipeline.work.engine import Engine
from harcache.stages import index, rgb
from harcache.stages.shared.workspace import Workspace

FRAMES = 20


def film(project: Path, params: DatasetParams, clips: int = 6) -> tuple[DatasetParams, Workspace]:
    """Make ``clips`` videos, index them, crop them, and build rgb.zarr, whose shards take two clips each."""
    workspace = Workspace.under(project, "small", project / "videos")
    for number in range(clips):
        add_video(workspace, number)
    small = replace(
        params, index=FolderIndexParams("folder"), rgb=RgbParams(shard_rows=2 * FRAMES, size=32, codec="jpeg")
    )
    build(small, workspace)
    return small, workspace


def add_video(workspace: Workspace, number: int) -> None:
    """Add one video; its clip is ``clip<number>`` of class "even" or "odd"."""
    noise = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    picture = cv2.resize(noise, (128, 96))
    path = workspace.videos / ("odd" if number % 2 else "even") / f"clip{number}.mkv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, [np.roll(picture, 5 * t, axis=1) for t in range(FRAMES)], 25, "mpeg4", 3)


def build(params: DatasetParams, workspace: Workspace) -> None:
    """Index the videos, write a crop of each clip and bring rgb.zarr up to date."""
    with Engine(workers=0) as engine:
        index.run(params, workspace, engine)
        rows = [f"{clip.id},4,4,44,44,persons,{clip.id}\n" for clip in read_manifest(workspace.manifest)]
        workspace.crops.write_text("id,x1,y1,x2,y2,source,fingerprint\n" + "".join(rows))
        rgb.run(params, workspace, engine)

"""RGB: the crop of every stored frame, scaled and encoded, as ``rgb.zarr``.

A frame is one JPEG by default: seven times smaller than without loss and as fast to read; the sources are
lossy video already.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from harcache.cache.array_spec import ArraySpec
from harcache.cache.sampling import stored_frames
from harcache.cache.shard_writer import ShardWriter
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.clips import Clip
from harcache.pipeline.params import DatasetParams, RgbParams
from harcache.pipeline.video.frames import clip_frames
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.outcomes import Counts
from harcache.pipeline.work.plan import Unit
from harcache.stages.shared.rates import Timer
from harcache.stages.shared.store_parts import (
    Cropped,
    StoreSpec,
    build_store,
    crops_of,
    store_parameters,
    write_shards,
)
from harcache.stages.shared.workspace import Workspace

__all__ = ["Context", "array_spec", "crop_frame", "process", "run"]

_LARGEST = 4  # times the frame; Kinect places some joints a million pixels away, more than memory holds


@dataclass(frozen=True)
class Context:
    """What a unit needs beside its clips; the token stands for the state of the crops."""

    store: Path
    crops: Path
    crops_token: str
    videos: Path
    params: RgbParams
    max_frames: int | None


def run(params: DatasetParams, workspace: Workspace, engine: Engine) -> Counts:
    """Crop and encode the frames of every clip that has a crop; a dataset of poses alone has none."""
    if params.index.layout == "poses":
        raise HarcacheError(
            f"datasets.{params.name}.index.layout is 'poses', which has no videos: only the pose stream can "
            "be trained, by 'harcache train pose'"
        )
    cropped = Cropped.read(workspace, params.frames.max_frames)
    parameters = store_parameters("rgb", params)
    wanted = cropped.wanted(fingerprint("rgb", parameters), lambda clip: clip.fingerprint)
    store = StoreSpec("rgb", workspace.rgb, (array_spec(params.rgb),), params.rgb.shard_rows, parameters)
    context = Context(
        workspace.rgb,
        workspace.crops,
        cropped.token,
        workspace.videos,
        params.rgb,
        params.frames.max_frames,
    )
    return build_store(store, cropped, wanted, process, context, engine, workspace)


def array_spec(params: RgbParams) -> ArraySpec:
    """Return the store's array: ``frames`` (S, S, 3) uint8."""
    return ArraySpec("frames", (params.size, params.size, 3), "uint8", params.codec, params.quality)


def process(unit: Unit, context: Context) -> Report:
    """Make one part: the frames of its clips."""
    timer = Timer()
    return write_shards(
        unit,
        context.store,
        (array_spec(context.params),),
        context.params.shard_rows,
        timer,
        lambda clip, writers: _write_clip(clip, context, writers[0], timer),
    )


def crop_frame(frame: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Cut ``box`` (x1 y1 x2 y2, pixels) out of (H, W, 3) uint8 and scale it to (size, size, 3), bilinear.

    What lies outside the frame is black. HarcacheError for a box over 4 times as long as the frame.
    """
    x1, y1, x2, y2 = box
    height, width = frame.shape[:2]
    if max(x2 - x1, y2 - y1) > _LARGEST * max(height, width):
        raise HarcacheError(
            f"its crop of {x2 - x1}x{y2 - y1} pixels is over {_LARGEST} times its frame of {width}x{height}: "
            "its keypoints lie far outside; set crop.fit to 'clip', or mend them"
        )
    inside = frame[max(y1, 0) : min(y2, height), max(x1, 0) : min(x2, width)]
    top, left = max(-y1, 0), max(-x1, 0)
    if inside.shape[:2] != (y2 - y1, x2 - x1):
        bottom, right = (y2 - y1) - top - inside.shape[0], (x2 - x1) - left - inside.shape[1]
        inside = cv2.copyMakeBorder(inside, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    return cv2.resize(inside, (size, size), interpolation=cv2.INTER_LINEAR)


def _write_clip(clip: Clip, context: Context, writer: ShardWriter, timer: Timer) -> int:
    box = crops_of(context.crops, context.crops_token)[clip.id].box
    stored = set(stored_frames(clip.frames, context.max_frames).tolist())
    frames = timer.iterate("decode", clip_frames(context.videos, clip))
    for number, frame in enumerate(frames):
        if number in stored:
            with timer("crop"):
                image = crop_frame(frame, box, context.params.size)
            with timer("write"):
                writer.append(image)
    return len(stored)

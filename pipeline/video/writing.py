"""Writes videos: the demo's, previews and overlays, and what tests and benchmarks film."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

from harcache.pipeline.base.errors import did_you_mean
from harcache.pipeline.base.files import commit_file
from harcache.pipeline.video.frames import VideoError

__all__ = ["write_video"]

_QUALITY_OPTIONS = {"libx264": ("crf",), "mpeg4": ("qmin", "qmax")}


def write_video(
    path: Path, frames: Iterable[np.ndarray], fps: int | Fraction, codec: str = "libx264", crf: int = 18
) -> None:
    """Write (H, W, 3) uint8 RGB frames of even height and width as yuv420p; the suffix chooses the container.

    ``crf`` is the rate factor of libx264 (0 best, 51 worst), or the quantiser of mpeg4 (1 best, 31 worst).
    With mpeg4 the same frames give the same bytes; libx264's differ a little from call to call. The file
    appears under its name only when it is whole.
    """
    if codec not in _QUALITY_OPTIONS:
        raise VideoError(f"codec '{codec}' is not supported. {did_you_mean(codec, _QUALITY_OPTIONS)}")
    images = iter(frames)
    first = next(images, None)
    if first is None or first.shape[0] % 2 or first.shape[1] % 2:
        found = "no frames" if first is None else f"{first.shape[1]}x{first.shape[0]}"
        raise VideoError(f"{path}: can't write {found}; expected frames of even width and height")
    # The suffix must stay, since it chooses the container; a dot hides the file from the dataset layouts.
    partial = path.with_name(f".partial-{path.name}")
    with av.open(partial, "w", options={"fflags": "+bitexact"}) as container:
        options = {name: str(crf) for name in _QUALITY_OPTIONS[codec]}
        if codec == "libx264":
            options["preset"] = "veryfast"  # seven times as quick as its default, for larger files
        stream = cast(VideoStream, container.add_stream(codec, fps, options | {"flags": "+bitexact"}))
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for image in chain([first], images):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    commit_file(partial, path)

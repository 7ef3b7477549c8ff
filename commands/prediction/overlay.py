"""A prediction drawn over its video: who was found, where the network looked, and what it says.

Attention is shown as light, persons in colours that the colour-blind tell apart, each with a dark edge, so
that all of it is seen on any background. Small videos are enlarged until text is legible.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from harcache.commands.prediction.poses import counted
from harcache.commands.prediction.samples import SampledSpan
from harcache.pipeline.base.progress import Progress
from harcache.pipeline.video.frames import Probe, read_frames
from harcache.pipeline.video.writing import write_video
from harcache.stages.pictures.drawing import (
    COLOURS,
    WHITE,
    draw_box,
    draw_skeleton,
    shade,
    with_even_sides,
    with_text,
)

__all__ = ["OVERLAYS", "Shown", "write_overlay"]

OVERLAYS = (".mp4", ".mkv", ".mov", ".m4v", ".avi")
"""Suffixes of the containers that take what an overlay is written with."""

_LEAST_HEIGHT, _MOST_WIDTH = 480, 4096  # pixels that small videos are enlarged to; H.264 ends at 16,384


@dataclass(frozen=True)
class Shown:
    """A window as it is drawn: ``classes`` best first, ``attention`` (T, h, w) 0..1 of its RGB frames."""

    sampled: SampledSpan
    classes: Sequence[Mapping[str, Any]]
    attention: np.ndarray | None


def write_overlay(
    out: Path, path: Path, video: Probe, shown: Sequence[Shown], min_score: float, bar: Progress
) -> None:
    """Draw the windows over the video at ``path``; each frame shows the window whose middle is nearest.

    Joints that score under ``min_score`` are left out. The suffix of ``out`` chooses the container.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(video.fps or 25).limit_denominator(1001)
    write_video(out, _drawn(path, video, shown, min_score, bar), rate)


def _drawn(
    path: Path, video: Probe, shown: Sequence[Shown], min_score: float, bar: Progress
) -> Iterator[np.ndarray]:
    middles = np.array([one.sampled.span.start + one.sampled.span.end for one in shown]) / 2
    scale = max(1, min(-(-_LEAST_HEIGHT // video.height), _MOST_WIDTH // video.width))
    for number, frame in enumerate(counted(read_frames(path, 0, video.frames), bar)):
        window = shown[int(np.abs(middles - number - 0.5).argmin())]
        yield _draw(frame, number, window, min_score, scale)


def _draw(frame: np.ndarray, number: int, shown: Shown, min_score: float, scale: int) -> np.ndarray:
    span = shown.sampled.span
    shaded = _lit(frame, number, shown)
    image = cv2.resize(shaded, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    thickness = max(1, round(image.shape[0] / 300))
    x1, y1, x2, y2 = (scale * edge for edge in span.crop)
    cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), WHITE, 1)
    t = number - span.start
    if 0 <= t < span.end - span.start:
        for person in range(len(span.boxes)):
            colour = COLOURS[person % len(COLOURS)]
            joints = np.where(
                (span.scores[person, t] >= min_score)[:, None], span.keypoints[person, t], np.nan
            )
            draw_box(image, span.boxes[person, t] * scale, colour, thickness)
            draw_skeleton(image, joints * scale, colour, thickness)
    return with_even_sides(with_text(image, _lines(shown)))


def _lit(frame: np.ndarray, number: int, shown: Shown) -> np.ndarray:
    """Darken the crop where the network does not look in the sampled frame that is nearest."""
    if shown.attention is None:
        return frame
    nearest = int(np.abs(np.array(shown.sampled.frames) - number).argmin())
    peak = max(float(shown.attention.max()), 1e-6)
    x1, y1, x2, y2 = shown.sampled.span.crop
    weights = cv2.resize(shown.attention[nearest] / peak, (x2 - x1, y2 - y1), interpolation=cv2.INTER_LINEAR)
    height, width = frame.shape[:2]
    light = np.zeros((height, width), np.float32)
    top, left = max(y1, 0), max(x1, 0)
    inside = weights[top - y1 : height - y1, left - x1 : width - x1]
    light[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return shade(frame, light)


def _lines(shown: Shown) -> tuple[str, ...]:
    first, *others = [f"{one['name']} {one['probability']:.1%}" for one in shown.classes]
    found = "" if len(shown.sampled.span.boxes) else "nobody found; "
    return found + first, "   ".join(others[:2])

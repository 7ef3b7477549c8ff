"""A prediction drawn over its video: who was found, where the network looked, and what it says.

Attention is shown as light, persons in colours that the colour-blind tell apart, each with a dark edge, so
that all of it is seen on any background. Small videos are enlarged until text is legible.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.keypoints import COCO_LIMBS
from pipeline.progress import Progress
from pipeline.video import Probe, read_frames, write_video
from stages.chain import Sampled, counted

__all__ = ["Shown", "write_overlay"]

# Okabe and Ito's (https://jfly.uni-koeln.de/color), the ones that are light enough on dark ground.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0))
_EDGE, _TEXT, _FAINT = (0, 0, 0), (255, 255, 255), (200, 200, 200)
_LEAST_HEIGHT = 480  # pixels
_DARKEST = 0.35  # of a pixel's light where the network does not look
_LINES = 2  # of text: the likeliest class, and those after it


@dataclass(frozen=True)
class Shown:
    """A window as it is drawn: ``classes`` best first, ``attention`` (T, h, w) 0..1 of its RGB frames."""

    sampled: Sampled
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
    middles = np.array([one.sampled.seen.start + one.sampled.seen.end for one in shown]) / 2
    scale = max(1, -(-_LEAST_HEIGHT // video.height))
    for number, frame in enumerate(counted(read_frames(path, 0, video.frames), bar)):
        window = shown[int(np.abs(middles - number - 0.5).argmin())]
        yield _draw(frame, number, window, min_score, scale)


def _draw(frame: np.ndarray, number: int, shown: Shown, min_score: float, scale: int) -> np.ndarray:
    seen = shown.sampled.seen
    lit = _lit(frame, number, shown)
    image = cv2.resize(lit, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    thickness = max(1, round(image.shape[0] / 300))
    x1, y1, x2, y2 = (scale * edge for edge in seen.crop)
    cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), _TEXT, 1)
    t = number - seen.start
    if 0 <= t < seen.end - seen.start:
        for person in range(len(seen.boxes)):
            colour = _COLOURS[person % len(_COLOURS)]
            joints = np.where(
                (seen.scores[person, t] >= min_score)[:, None], seen.keypoints[person, t], np.nan
            )
            _draw_box(image, seen.boxes[person, t] * scale, colour, thickness)
            _draw_skeleton(image, joints * scale, colour, thickness)
    return _even(_with_text(image, _lines(shown)))


def _lit(frame: np.ndarray, number: int, shown: Shown) -> np.ndarray:
    """Darken the crop where the network does not look in the sampled frame that is nearest."""
    if shown.attention is None:
        return frame
    nearest = int(np.abs(np.array(shown.sampled.frames) - number).argmin())
    peak = max(float(shown.attention.max()), 1e-6)
    x1, y1, x2, y2 = shown.sampled.seen.crop
    weights = cv2.resize(shown.attention[nearest] / peak, (x2 - x1, y2 - y1), interpolation=cv2.INTER_LINEAR)
    height, width = frame.shape[:2]
    light = np.full((height, width), _DARKEST, np.float32)
    top, left = max(y1, 0), max(x1, 0)
    inside = weights[top - y1 : height - y1, left - x1 : width - x1]
    light[top : top + inside.shape[0], left : left + inside.shape[1]] += (1 - _DARKEST) * inside
    return (frame * light[..., None]).astype(np.uint8)


def _draw_box(image: np.ndarray, box: np.ndarray, colour: Sequence[int], thickness: int) -> None:
    if np.isfinite(box).all():
        x1, y1, x2, y2 = (round(float(edge)) for edge in box)
        cv2.rectangle(image, (x1, y1), (x2, y2), _EDGE, thickness + 2)
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, thickness)


def _draw_skeleton(image: np.ndarray, joints: np.ndarray, colour: Sequence[int], thickness: int) -> None:
    """Draw limbs between joints (17, 2), NaN for one that is left out."""
    for edge, width in ((_EDGE, thickness + 2), (colour, thickness)):
        for limb in COCO_LIMBS:
            ends = joints[list(limb)]
            if np.isfinite(ends).all():
                start, end = (tuple(point) for point in ends.round().astype(int).tolist())
                cv2.line(image, start, end, edge, width, cv2.LINE_AA)
        for joint in joints[np.isfinite(joints).all(axis=1)].round().astype(int).tolist():
            cv2.circle(image, joint, width, edge, cv2.FILLED, cv2.LINE_AA)


def _lines(shown: Shown) -> tuple[str, ...]:
    first, *others = [f"{one['name']} {one['probability']:.1%}" for one in shown.classes]
    found = "" if len(shown.sampled.seen.boxes) else "nobody found; "
    return found + first, "   ".join(others[:2])


def _with_text(image: np.ndarray, lines: tuple[str, ...]) -> np.ndarray:
    """Put a band with text above the image, so that it hides nothing."""
    return np.concatenate([_band(lines, image.shape[1], max(16, image.shape[0] // 22)), image])


@lru_cache(maxsize=4)
def _band(lines: tuple[str, ...], width: int, size: int) -> np.ndarray:
    # OpenCV's own letters are ASCII alone.
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    path = font_manager.findfont("DejaVu Sans")
    band = Image.new("RGB", (width, round(1.45 * size * len(lines)) + size // 2), _EDGE)
    draw = ImageDraw.Draw(band)
    for row, line in enumerate(lines):
        chosen = size if row == 0 else round(0.8 * size)
        while chosen > 8 and draw.textlength(line, ImageFont.truetype(path, chosen)) > width - size:
            chosen -= 1
        place = (size // 2, size // 4 + round(1.45 * size * row))
        draw.text(place, line, _TEXT if row == 0 else _FAINT, ImageFont.truetype(path, chosen))
    return np.asarray(band)


def _even(image: np.ndarray) -> np.ndarray:
    """Repeat the last row and column where their number is odd, which yuv420p can't hold."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), "edge")

"""What pictures of clips are drawn with: boxes, skeletons, light and text, seen on any background.

Colours are those that the colour-blind tell apart, and everything has a dark edge. Text that is too long is
made smaller, or broken where a picture may grow.
"""

import textwrap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from harcache.pipeline.skeletons.joints import COCO_LIMBS

__all__ = [
    "BOX",
    "COLOURS",
    "LEFT",
    "RIGHT",
    "WHITE",
    "draw_box",
    "draw_skeleton",
    "shade",
    "text_band",
    "with_even_sides",
    "with_text",
    "wrap_lines",
]

# Okabe and Ito's (https://jfly.uni-koeln.de/color), the ones that are light enough on dark ground.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0))
LEFT, RIGHT, BOX = COLOURS[0], COLOURS[1], COLOURS[4]
WHITE, _GREY = (255, 255, 255), (200, 200, 200)
_EDGE = (0, 0, 0)
_DARKEST = 0.35  # of a pixel's light where the network does not look
_LEAST_TEXT = 8  # pixels
_LETTER = 0.6  # of a letter's height, its width on average
_FEWEST_LETTERS = 20  # of a line that is broken
# Pillow's own font has ASCII's letters alone; names of classes have others.
_FONT = str(Path(__file__).with_name("fonts") / "DejaVuSans.ttf")


def draw_box(image: np.ndarray, box: np.ndarray, colour: Sequence[int], thickness: int) -> None:
    """Draw x1 y1 x2 y2 into (H, W, 3) uint8; a box that is not finite is left out."""
    if np.isfinite(box).all():
        x1, y1, x2, y2 = (round(float(edge)) for edge in box)
        cv2.rectangle(image, (x1, y1), (x2, y2), _EDGE, thickness + 2)
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, thickness)


def draw_skeleton(image: np.ndarray, joints: np.ndarray, colour: Sequence[int], thickness: int) -> None:
    """Draw joints (V, 2), NaN for one that is left out; with limbs between them where they are COCO's 17."""
    limbs = COCO_LIMBS if len(joints) == 1 + max(map(max, COCO_LIMBS)) else ()
    for edge, width in ((_EDGE, thickness + 2), (colour, thickness)):
        for limb in limbs:
            ends = joints[list(limb)]
            if np.isfinite(ends).all():
                start, end = (tuple(point) for point in ends.round().astype(int).tolist())
                cv2.line(image, start, end, edge, width, cv2.LINE_AA)
        for joint in joints[np.isfinite(joints).all(axis=1)].round().astype(int).tolist():
            cv2.circle(image, joint, width, edge, cv2.FILLED, cv2.LINE_AA)


def shade(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Darken (H, W, 3) uint8 where ``weights``, (H, W) 0..1, are small."""
    light = _DARKEST + (1 - _DARKEST) * weights.astype(np.float32)
    return (image * light[..., None]).astype(np.uint8)


def with_text(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Put a band with text above the image, so that it hides nothing; the first line is the largest."""
    return np.concatenate([text_band(tuple(lines), image.shape[1], max(16, image.shape[0] // 22)), image])


@lru_cache(maxsize=4)
def text_band(lines: tuple[str, ...], width: int, size: int) -> np.ndarray:
    """Return white text on black, (h, width, 3) uint8: a first line ``size`` pixels high, others smaller."""
    # OpenCV's own letters are ASCII alone.
    from PIL import Image, ImageDraw, ImageFont

    band = Image.new("RGB", (width, round(1.45 * size * len(lines)) + size // 2), _EDGE)
    draw = ImageDraw.Draw(band)
    for row, line in enumerate(lines):
        chosen = size if row == 0 else round(0.8 * size)
        font = ImageFont.truetype(_FONT, chosen)
        while chosen > _LEAST_TEXT and draw.textlength(line, font) > width - size:
            chosen -= 1
            font = ImageFont.truetype(_FONT, chosen)
        place = (size // 2, size // 4 + round(1.45 * size * row))
        draw.text(place, line, WHITE if row == 0 else _GREY, font)
    return np.asarray(band)


def wrap_lines(lines: Sequence[str], width: int, size: int) -> tuple[str, ...]:
    """Break lines for `text_band`, where their number may differ from picture to picture."""
    letters = max(_FEWEST_LETTERS, int((width - size) / (_LETTER * size)))
    return tuple(row for line in lines for row in textwrap.wrap(line, letters))


def with_even_sides(image: np.ndarray) -> np.ndarray:
    """Repeat the last row and column where their number is odd, which yuv420p can't hold."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), "edge")

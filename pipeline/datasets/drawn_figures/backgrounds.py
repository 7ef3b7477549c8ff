"""Rooms for the demo's performers: what a detector must not take for a person."""

import cv2
import numpy as np

from harcache.pipeline.datasets.drawn_figures.performers import darker, vivid

__all__ = ["make_room"]


def make_room(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw an empty room, (H, W, 3) uint8 RGB: wall, floor, a texture, and some furniture that is nobody."""
    height, width = size
    wall, floor = (
        np.array(vivid(rng, (0.45, 0.95)), dtype=np.float32) * 0.5 + rng.uniform(60, 120) for _ in range(2)
    )
    image = np.empty((height, width, 3), dtype=np.float32)
    horizon = int(height * rng.uniform(0.55, 0.8))
    image[:horizon], image[horizon:] = wall, floor
    image *= np.linspace(rng.uniform(0.75, 1.0), rng.uniform(0.85, 1.15), width, dtype=np.float32)[
        None, :, None
    ]
    texture = rng.normal(0, 1, (height // 8 + 1, width // 8 + 1)).astype(np.float32)
    image += cv2.resize(texture, (width, height))[..., None] * rng.uniform(2, 9)
    canvas = np.clip(image, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(2, 8)):
        w, h = rng.uniform(0.06, 0.35) * width, rng.uniform(0.06, 0.4) * height
        x, y = rng.uniform(-0.1, 1.0) * width, rng.uniform(0.0, 0.9) * height
        color = vivid(rng, (0.2, 0.95))
        kind = rng.integers(3)
        if kind == 0:
            cv2.rectangle(canvas, (int(x), int(y)), (int(x + w), int(y + h)), color, -1)
            cv2.rectangle(canvas, (int(x), int(y)), (int(x + w), int(y + h)), darker(color), 2)
        elif kind == 1:
            cv2.ellipse(canvas, (int(x), int(y)), (int(w / 2), int(h / 2)), 0, 0, 360, color, -1, cv2.LINE_AA)
        else:
            cv2.line(
                canvas,
                (int(x), int(y)),
                (int(x + w), int(y + h - height * 0.2)),
                color,
                int(rng.integers(2, 9)),
                cv2.LINE_AA,
            )
    return cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 2.0))

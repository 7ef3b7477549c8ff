"""Discs and capsules on pictures, placed to a sixteenth of a pixel; all colours are RGB."""

import cv2
import numpy as np

from harcache.pipeline.datasets.drawn_figures.performers import Color, darker

__all__ = ["capsule", "disc", "outlined", "polygon"]

_SHIFT = 4  # cv2 draws with fractions of 1/16 pixel


def disc(image: np.ndarray, center: np.ndarray, radius: float, color: Color) -> None:
    """Fill a disc of ``radius`` pixels, half of one at least."""
    cv2.circle(image, _fixed(center), max(int(radius * (1 << _SHIFT)), 8), color, -1, cv2.LINE_AA, _SHIFT)


def capsule(image: np.ndarray, a: np.ndarray, b: np.ndarray, ra: float, rb: float, color: Color) -> None:
    """Fill the line from ``a`` to ``b`` with round ends of radius ``ra`` and ``rb``."""
    along = b - a
    length = float(np.hypot(*along))
    if length > 1e-3:
        aside = np.array([-along[1], along[0]]) / length
        corners = np.stack([a + aside * ra, b + aside * rb, b - aside * rb, a - aside * ra])
        polygon(image, corners, color)
    disc(image, a, ra, color)
    disc(image, b, rb, color)


def outlined(image: np.ndarray, a: np.ndarray, b: np.ndarray, ra: float, rb: float, color: Color) -> None:
    """Fill such a capsule inside a darker edge."""
    edge = max(1.0, 0.12 * ra)
    capsule(image, a, b, ra + edge, rb + edge, darker(color, 0.4))
    capsule(image, a, b, ra, rb, color)


def polygon(image: np.ndarray, corners: np.ndarray, color: Color, hull: bool = False) -> None:
    """Fill the convex polygon of ``corners``, (n, 2) pixels in order, or with ``hull`` in any order."""
    points = np.round(corners * (1 << _SHIFT)).astype(np.int32)
    cv2.fillConvexPoly(image, cv2.convexHull(points) if hull else points, color, cv2.LINE_AA, _SHIFT)


def _fixed(point: np.ndarray) -> tuple[int, int]:
    x, y = np.round(point * (1 << _SHIFT)).astype(int)
    return int(x), int(y)

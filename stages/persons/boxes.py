"""Arithmetic of boxes that more than one stage needs."""

import numpy as np

__all__ = ["overlaps"]


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union of every box of ``a`` with every one of ``b``: (len(a), len(b)).

    Boxes are (n, 4), x1 y1 x2 y2; one without an area overlaps nothing.
    """
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=-1)
    area_a, area_b = (np.prod(np.clip(x[:, 2:] - x[:, :2], 0, None), axis=-1) for x in (a, b))
    return common / np.maximum(area_a[:, None] + area_b - common, 1e-9)

"""Pose heatmaps drawn on the device from cached keypoints: the second source beside the cached volume.

It reads 1 % of the bytes and lets training move keypoints before they are drawn; the price is the drawing in
every step, and coordinates of float16.
"""

from functools import reduce

import torch
from torch import Tensor

__all__ = ["draw_heatmaps"]

_LEAST_SCORE = 1e-4  # a joint under it is not drawn (released code)


def draw_heatmaps(keypoints: Tensor, size: int, sigma: float) -> Tensor:
    """Draw a Gaussian at every joint, as high as its score; persons are merged by the maximum.

    ``keypoints``: (..., M, K, 3), x y in the crop 0..1 and score, any float dtype; ``sigma`` in pixels of the
    heatmap. Returns (..., K, size, size) float32, rows before columns, on the same device. As in the cached
    volume, joints that are NaN or score under 1e-4 are left out, a Gaussian ends at 3 sigma, and no map
    exceeds 1, as some networks' scores do. The volume differs by its rounding, half of 1/255, and by float16:
    0.014 pixels of 56, up to 5/255 where a Gaussian is steepest. Source: EPAM-Net, section 3.
    """
    points = keypoints.float()
    drawn = points.isfinite().all(-1) & (points[..., 2] >= _LEAST_SCORE)
    points = torch.where(drawn[..., None], points, 0.0)
    across, down = (_bell(points[..., axis] * size, size, sigma) for axis in (0, 1))
    down = down * points[..., 2:]
    persons = zip(across.unbind(-3), down.unbind(-3), strict=True)
    maps = (one_down[..., :, None] * one_across[..., None, :] for one_across, one_down in persons)
    return reduce(torch.maximum, maps).clamp_(max=1)


def _bell(mean: Tensor, size: int, sigma: float) -> Tensor:
    """Gaussians (..., size) of peak 1 around ``mean`` (...), cut off where the released code cuts them."""
    mean = mean[..., None]
    pixel = torch.arange(size, device=mean.device, dtype=mean.dtype)
    inside = (pixel >= (mean - 3 * sigma).trunc()) & (pixel <= (mean + 3 * sigma).trunc())
    return torch.exp((pixel - mean) ** 2 / (-2 * sigma**2)) * inside

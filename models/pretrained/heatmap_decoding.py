"""Keypoints out of heatmaps, a whole batch at once on its device, as mmpose finds them one by one.

What needs a device's sums comes first, and the few numbers that it leaves are finished on the CPU.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["finish_decoding", "start_decoding"]


def start_decoding(heatmaps: Tensor, codec: Any) -> tuple[Tensor, ...]:
    """Turn heatmaps (B, K, H, W) float32 into what `finish_decoding` needs, without leaving the device."""
    if _is_quarter(codec):
        return _decode_quarter(heatmaps)
    if _is_udp(codec):
        return _decode_udp(heatmaps, _gaussian(codec.blur_kernel_size, heatmaps.device))
    return (heatmaps,)


def finish_decoding(found: Sequence[Tensor], codec: Any) -> tuple[np.ndarray, np.ndarray]:
    """Find keypoints.

    Returns:
        (B, K, 2) float64, pixels of the network's input, x before y, and the scores (B, K) float32.
    """
    if _is_quarter(codec):
        return found[0].numpy() * codec.scale_factor, found[1].numpy()
    if _is_udp(codec):
        return found[0].numpy() / (np.array(codec.heatmap_size) - 1) * codec.input_size, found[1].numpy()
    decoded = [codec.decode(heatmap) for heatmap in found[0].numpy()]
    points, values = zip(*decoded, strict=True)
    return np.concatenate(points), np.concatenate(values)


def _is_quarter(codec: Any) -> bool:
    return type(codec).__name__ == "MSRAHeatmap" and not codec.unbiased


def _is_udp(codec: Any) -> bool:
    return type(codec).__name__ == "UDPHeatmap" and codec.heatmap_type == "gaussian"


def _maxima(heatmaps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the highest pixels' columns and rows, (B, K) int64 each, and their values."""
    scores, flat = heatmaps.flatten(2).max(dim=-1)
    return flat % heatmaps.shape[-1], flat // heatmaps.shape[-1], scores


class _Around:
    """Values near the pixels (x, y) of heatmaps; beyond the border the border's value."""

    def __init__(self, heatmaps: Tensor, x: Tensor, y: Tensor) -> None:
        self._width = heatmaps.shape[-1] + 2
        self._padded = F.pad(heatmaps, (1, 1, 1, 1), mode="replicate").flatten(2)
        self._center = (y + 1) * self._width + x + 1

    def __call__(self, dx: int, dy: int) -> Tensor:
        return self._padded.gather(2, (self._center + dy * self._width + dx)[..., None])[..., 0].double()


def _decode_quarter(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """The highest pixel, moved by a quarter towards its higher neighbour (https://arxiv.org/abs/1804.06208)."""
    height, width = heatmaps.shape[-2:]
    x, y, scores = _maxima(heatmaps)
    near = _Around(heatmaps, x, y)
    # mmpose leaves the outer pixels where they are: two on the left and on top, one elsewhere.
    inside_x = (x > 1) & (x < width - 1) & (y > 0)
    inside_y = (y > 1) & (y < height - 1) & (x > 0)
    shift = torch.stack(
        [(near(1, 0) - near(-1, 0)).sign() * inside_x, (near(0, 1) - near(0, -1)).sign() * inside_y], dim=-1
    )
    return _or_outside(torch.stack([x, y], dim=-1) + 0.25 * shift, scores), scores


def _decode_udp(heatmaps: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The top of the parabola through a blurred heatmap's logarithm (https://arxiv.org/abs/1911.07524)."""
    x, y, scores = _maxima(heatmaps)
    near = _Around(_blur(heatmaps, kernel).clamp(1e-3, 50).log(), x, y)
    here, left, right, above, below = near(0, 0), near(-1, 0), near(1, 0), near(0, -1), near(0, 1)
    dx, dy = (right - left) / 2, (below - above) / 2
    epsilon = float(np.finfo(np.float32).eps)
    dxx, dyy = right - 2 * here + left + epsilon, below - 2 * here + above + epsilon
    dxy = (near(1, 1) - right - below + 2 * here - left - above + near(-1, -1)) / 2
    determinant = dxx * dyy - dxy**2
    offset = torch.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], dim=-1) / determinant[..., None]
    offset = offset.masked_fill(determinant[..., None] == 0, 0.0)
    return _or_outside(torch.stack([x, y], dim=-1) - offset, scores), scores


def _or_outside(keypoints: Tensor, scores: Tensor) -> Tensor:
    """Put keypoints whose heatmap is nowhere positive at (-1, -1), as mmpose does."""
    return keypoints.masked_fill(scores[..., None] <= 0, -1.0)


@lru_cache
def _gaussian(size: int, device: torch.device) -> Tensor:
    # Brought to the device once: each such copy would wait for all that the device has to do.
    return torch.from_numpy(cv2.getGaussianKernel(size, 0, cv2.CV_32F)).flatten().to(device)


def _blur(heatmaps: Tensor, kernel: Tensor) -> Tensor:
    """Blur by a Gaussian with nothing beyond the border; the highest value stays what it was."""
    half = len(kernel) // 2
    maps = heatmaps.flatten(0, 1)[:, None]
    maps = F.conv2d(maps, kernel.view(1, 1, 1, -1), padding=(0, half))
    maps = F.conv2d(maps, kernel.view(1, 1, -1, 1), padding=(half, 0))
    blurred = maps.view_as(heatmaps)
    return blurred * (heatmaps.amax(dim=(2, 3), keepdim=True) / blurred.amax(dim=(2, 3), keepdim=True))

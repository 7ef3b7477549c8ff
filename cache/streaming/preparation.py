"""Batches as EPAM-Net takes them, made on the device: normalised, mirrored and laid out there.

Rows travel to a GPU as uint8, a quarter of the bytes of float32.
"""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from harcache.cache.streaming.dataset import Batch
from harcache.cache.streaming.heatmaps import draw_heatmaps
from harcache.pipeline.skeletons.joints import COCO_MIRRORED

__all__ = ["constant", "prepare"]

_RGB_MEAN = (123.675, 116.28, 103.53)
_RGB_STD = (58.395, 57.12, 57.375)


def prepare(
    batch: Mapping[str, Tensor],
    device: str | torch.device | None = None,
    *,
    heatmap_size: int = 56,
    sigma: float = 0.6,
) -> Batch:
    """Turn a batch into what the networks take, on ``device`` (default: where it is), in fresh memory.

    rgb becomes (B, 3, T, H, W) float32, normalised, and heatmaps (B, 17, T', h, w) float32 in 0..1, both laid
    out channels-last; label and index stay. Keypoints become heatmaps of ``heatmap_size`` pixels, which
    ``sigma`` is in too; where there is a crop, that part of them fills the heatmap. Samples with flip are
    mirrored, left and right keypoints change places.
    """
    moved = {name: value.to(device or value.device, non_blocking=True) for name, value in batch.items()}
    flip = moved.pop("flip").view(-1, 1, 1, 1, 1)
    if "rgb" in moved:
        rgb = moved["rgb"]
        moved["rgb"] = _normalise(torch.where(flip, rgb.flip(3), rgb)).permute(0, 4, 1, 2, 3)
    if "keypoints" in moved:
        keypoints = moved.pop("keypoints")
        if "crop" in moved:
            keypoints = _crop(keypoints, moved.pop("crop"))
        moved["heatmaps"] = _to_heatmaps(draw_heatmaps(keypoints, heatmap_size, sigma), flip)
    elif "heatmaps" in moved:
        moved["heatmaps"] = _to_heatmaps(moved["heatmaps"], flip).div_(255)
    return moved


@lru_cache(maxsize=32)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers on a device, (n,), taken there once.

    At such a copy in each step the host of a GPU would wait until all that is queued is done.
    """
    return torch.tensor(values, device=device)


def _crop(keypoints: Tensor, crop: Tensor) -> Tensor:
    """Move (B, T, M, K, 3) from the whole crop into parts of it, (B, 4): x, y, width, height."""
    corner, sides = crop[:, None, None, None, :2], crop[:, None, None, None, 2:]
    return torch.cat([(keypoints[..., :2].float() - corner) / sides, keypoints[..., 2:].float()], -1)


def _to_heatmaps(maps: Tensor, flip: Tensor) -> Tensor:
    """Mirror (B, T, K, h, w) where asked and lay it out as (B, K, T, h, w) float32."""
    mirrored = maps.index_select(2, constant(COCO_MIRRORED, maps.device)).flip(4)
    frames = torch.where(flip, mirrored, maps).flatten(0, 1)
    frames = frames.to(torch.float32, memory_format=torch.channels_last)
    return frames.unflatten(0, maps.shape[:2]).transpose(1, 2)


def _normalise(rgb: Tensor) -> Tensor:
    """Normalise (..., W, 3) uint8 by channel, whole rows at a time: loops over 3 values are slow on a CPU."""
    width = rgb.shape[-2]
    mean, std = (constant(values * width, rgb.device) for values in (_RGB_MEAN, _RGB_STD))
    return rgb.flatten(-2).float().sub_(mean).div_(std).unflatten(-1, (width, 3))

"""Batches as AMFI-Net takes them, made on the device: skeletons and small frames, mirrored together.

Where a body stands and which way it faces says nothing of what it does, so both are taken out of skeletons in
space; keypoints lie in the crop of the persons, which has taken out their place and size already.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from harcache.cache.streaming.dataset import Batch
from harcache.cache.streaming.preparation import constant
from harcache.pipeline.skeletons.joints import COCO_MIRRORED, NTU_MIRRORED

__all__ = ["prepare_skeletons"]

_HIP, _SPINE, _LEFT_SHOULDER, _RIGHT_SHOULDER = 0, 1, 4, 8
_SHORTEST = 1e-3  # metres; a shorter spine or width of the shoulders has no direction


def prepare_skeletons(
    batch: Mapping[str, Tensor], device: str | torch.device | None = None, *, rgb_size: int = 112
) -> Batch:
    """Turn a batch into what AMFI-Net and its streams take, on ``device`` (default: where it is).

    rgb becomes (B, 3, T, H, W) float32 in 0..1, scaled to ``rgb_size`` pixels (bilinear, antialiased) where
    it is larger. Keypoints or positions (B, T', M, V, 3) become skeletons (B, 3, T', V, M) float32, 0 where
    nobody is: of keypoints x and y in -1..1 of the crop and the score; of positions metres from the spine of
    the first person when first seen, along that body's right to left, back to front and up, as 2s-AGCN does.
    Samples with flip are mirrored in both, left and right joints change places. label and index stay.
    """
    moved = {name: value.to(device or value.device, non_blocking=True) for name, value in batch.items()}
    flip = moved.pop("flip").view(-1, 1, 1, 1, 1)
    if "rgb" in moved:
        rgb = moved["rgb"]
        moved["rgb"] = _small(torch.where(flip, rgb.flip(3), rgb), rgb_size)
    if "keypoints" in moved:
        moved["skeletons"] = _laid_out(_in_crop(moved.pop("keypoints").float()), flip, COCO_MIRRORED)
    elif "positions" in moved:
        moved["skeletons"] = _laid_out(_from_body(moved.pop("positions")), flip, NTU_MIRRORED)
    return moved


def _small(rgb: Tensor, size: int) -> Tensor:
    """Scale (B, T, H, W, 3) uint8 down to ``size``; lay it out as (B, 3, T, size, size) float32 in 0..1."""
    frames = rgb.flatten(0, 1).permute(0, 3, 1, 2).float()
    if frames.shape[-1] > size:
        frames = functional.interpolate(frames, (size, size), mode="bilinear", antialias=True)
    # Contiguous: 3-D convolutions on a CPU are a fifth slower with channels last.
    return frames.div_(255).unflatten(0, rgb.shape[:2]).transpose(1, 2).contiguous()


def _in_crop(keypoints: Tensor) -> Tensor:
    """Move x and y of (..., 3) from 0..1 of the crop to -1..1, so that 0, which is nobody, is its middle."""
    return torch.cat([2 * keypoints[..., :2] - 1, keypoints[..., 2:]], -1)


def _from_body(positions: Tensor) -> Tensor:
    """Turn (B, T, M, V, 3) metres before the sensor into metres seen from the first person's body."""
    person = positions[:, :, 0]
    trunk = constant((_HIP, _SPINE, _LEFT_SHOULDER, _RIGHT_SHOULDER), positions.device)
    seen = person.index_select(2, trunk).isfinite().all(-1).all(-1)
    first = person[torch.arange(len(person), device=person.device), seen.int().argmax(1)]
    up = first[:, _SPINE] - first[:, _HIP]
    height = up.norm(dim=-1, keepdim=True)
    up = up / height
    across = first[:, _LEFT_SHOULDER] - first[:, _RIGHT_SHOULDER]
    across = across - (across * up).sum(-1, keepdim=True) * up
    width = across.norm(dim=-1, keepdim=True)
    across = across / width
    axes = torch.stack([across, torch.linalg.cross(up, across), up], 1)
    # Comparisons with NaN, where nobody is, are false.
    known = ((height > _SHORTEST) & (width > _SHORTEST)).unsqueeze(-1)
    axes = torch.where(known, axes, torch.eye(3, device=axes.device))
    centred = positions - first[:, _SPINE].nan_to_num()[:, None, None, None]
    # No matrix product: autocast would round it.
    return (centred.unsqueeze(-2) * axes[:, None, None, None]).sum(-1)


def _laid_out(joints: Tensor, flip: Tensor, mirrored: tuple[int, ...]) -> Tensor:
    """Mirror (B, T, M, V, 3) where asked, NaN to 0, and lay it out as (B, 3, T, V, M)."""
    opposite = joints.index_select(3, constant(mirrored, joints.device))
    opposite = opposite * constant((-1.0, 1.0, 1.0), joints.device)
    known = torch.where(flip, opposite, joints)
    known = torch.where(known.isfinite().all(-1, keepdim=True), known, 0)
    return known.permute(0, 4, 1, 3, 2).contiguous()

"""Pose-driven attention (EPAM-Net, section 3.3): where and when the RGB stream shall look.

Both modules turn pose features into one map over time and space, which weighs the RGB features.
"""

import torch
from torch import Tensor, nn

from harcache.pipeline.base.errors import HarcacheError

__all__ = ["NestedAttention", "SpatialTemporalAttention"]


class NestedAttention(nn.Module):
    """The paper's nested attention: (B, C, T, h, w) float features to a map (B, 1, T, h, w) in 0..1.

    The temporal weights are drawn from the spatial map itself (equations 2 to 4). 107 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spatial = _SpatialAttention()
        self.conv_temporal_attention = nn.Conv1d(1, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of the spatial and the temporal map."""
        spatial = self.spatial(x)
        temporal = self.conv_temporal_attention(spatial.mean((3, 4))).sigmoid()
        return spatial * temporal[..., None, None]


class _SpatialAttention(nn.Module):
    """A 7x7 convolution over each frame's channel maximum and channel mean, then a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.stack([x.amax(1), x.mean(1)], dim=2)
        spatial = self.bn(self.conv(pooled.flatten(0, 1))).sigmoid()
        return spatial.unflatten(0, (-1, x.shape[2])).transpose(1, 2)


class SpatialTemporalAttention(nn.Module):
    """The attention compared with in the paper (its reference 38), whose two maps are learned apart.

    (B, channels, frames, h, w) float features to a map (B, 1, frames, h, w) in 0..1; the number of frames is
    fixed. 2,507 parameters for 216 channels and 16 frames.
    """

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.spatial = nn.Sequential(
            nn.Conv2d(channels, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 1, 7, padding=3), nn.Sigmoid()
        )
        self.temporal = nn.Sequential(
            nn.Linear(frames, frames, bias=False),
            nn.ReLU(),
            nn.Linear(frames, frames, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of the maps; raise HarcacheError for another number of frames."""
        if x.shape[2] != self.frames:
            raise HarcacheError(
                f"this attention was made for {self.frames} RGB frames and got {x.shape[2]}; "
                f"set rgb_frames to {x.shape[2]} or use attention 'nested', which takes any number"
            )
        spatial = self.spatial(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, self.frames))
        temporal = self.temporal(spatial.mean((2, 3, 4)))
        return (spatial * temporal[..., None, None, None]).transpose(1, 2)

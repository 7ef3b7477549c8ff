"""EPAM-Net with 3-D convolutions, transcribed plainly from the released facts: the rival of the benchmarks.

Nothing here is shared with ``models``, so that the tests' comparison of the two means something.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["EPAMNet3d"]

# The width of squeeze-excitation for each number of channels, worked out by hand; at 144 the rule rounds up.
_HIDDEN = {36: 8, 54: 8, 72: 8, 108: 8, 144: 16, 216: 16, 432: 32}


class EPAMNet3d(nn.Module):
    """The released network without dropout: its names, weights (O, I, 1, k, k) and order of arithmetic."""

    def __init__(
        self,
        num_classes: int,
        width: int = 24,
        rgb_blocks: Sequence[int] = (3, 5, 11, 7),
        pose_blocks: Sequence[int] = (5, 11, 7),
    ) -> None:
        super().__init__()
        self.rgb_backbone = _Backbone(3, width, rgb_blocks, stem_stride=2, d=8)
        self.pose_backbone = _Backbone(17, width, pose_blocks, stem_stride=1, d=4)
        self.attention_module = _Attention()
        self.rgb_cls_head = _Head(self.rgb_backbone.features, num_classes)
        self.pose_cls_head = _Head(self.pose_backbone.features, num_classes)

    def forward(self, rgb: Tensor, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        """Return (rgb_logits, pose_logits) as ``models.EPAMNet`` does."""
        seen, pose = self.rgb_backbone(rgb), self.pose_backbone(heatmaps)
        step = heatmaps.shape[2] // rgb.shape[2]
        seen = seen + seen * self.attention_module(pose[:, :, ::step])
        return self.rgb_cls_head(seen), self.pose_cls_head(pose)


class _ConvBN(nn.Module):
    def __init__(self, i: int, o: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        size, strides, padding = (1, kernel, kernel), (1, stride, stride), (0, kernel // 2, kernel // 2)
        self.conv = nn.Conv3d(i, o, size, strides, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm3d(o)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


def _shift(x: Tensor, d: int) -> Tensor:
    fold = x.shape[1] // d
    out = torch.zeros_like(x)
    out[:, :fold, :-1] = x[:, :fold, 1:]
    out[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
    out[:, 2 * fold :] = x[:, 2 * fold :]
    return out


class _SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(channels, hidden, 1)
        self.fc2 = nn.Conv3d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.adaptive_avg_pool3d(x, 1)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(weight))))


class _Block(nn.Module):
    def __init__(self, i: int, o: int, stride: int, se: bool, d: int) -> None:
        super().__init__()
        inner = int(o * 2.25)
        self.downsample = _ConvBN(i, o, 1, stride) if stride != 1 or i != o else None
        self.conv1 = _ConvBN(i, inner, 1)
        self.conv2 = _ConvBN(inner, inner, 3, stride, inner)
        self.conv3 = _ConvBN(inner, o, 1)
        self.se_module = _SqueezeExcitation(inner, _HIDDEN[inner]) if se else None
        self.d = d

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.conv1(_shift(x, self.d)))
        out = self.conv2(out)
        if self.se_module is not None:
            out = self.se_module(out)
        out = self.conv3(out * torch.sigmoid(out))
        identity = x if self.downsample is None else self.downsample(x)
        return torch.relu(identity + out)


class _Backbone(nn.Module):
    def __init__(self, channels: int, width: int, blocks: Sequence[int], stem_stride: int, d: int) -> None:
        super().__init__()
        self.conv1_s = _ConvBN(channels, width, 3, stem_stride)
        i = width
        self.stages = [f"layer{number + 1}" for number in range(len(blocks))]
        for number, (stage, depth) in enumerate(zip(self.stages, blocks, strict=True)):
            layers = []
            for b in range(depth):
                layers.append(_Block(i, width * 2**number, 2 if b == 0 else 1, b % 2 == 0, d))
                i = width * 2**number
            self.add_module(stage, nn.Sequential(*layers))
        self.features = int(i * 2.25)
        self.conv5 = _ConvBN(i, self.features, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1_s(x))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return torch.relu(self.conv5(x))


class _Head(nn.Module):
    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.fc_cls = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_cls(nn.functional.adaptive_avg_pool3d(x, 1).flatten(1))


class _SpatialAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 1, (1, 7, 7), padding=(0, 3, 3), bias=False)
        self.bn = nn.BatchNorm3d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat((x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)), dim=1)
        return torch.sigmoid(self.bn(self.conv(pooled)))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = _SpatialAttention()
        self.conv_temporal_attention = nn.Conv1d(1, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        spatial = self.spatial(x)
        time = torch.sigmoid(self.conv_temporal_attention(spatial.mean((3, 4))))
        return spatial * time.unsqueeze(-1).unsqueeze(-1)

"""The released networks transcribed plainly: 3-D convolutions, a shift by slices, the released names.

Nothing here is shared with ``models``, so that agreement means something.
"""

import torch
from torch import Tensor, nn


def conv_bn(i: int, o: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    layer = nn.Module()
    layer.conv = nn.Conv3d(
        i,
        o,
        (1, kernel, kernel),
        (1, stride, stride),
        (0, kernel // 2, kernel // 2),
        groups=groups,
        bias=False,
    )
    layer.bn = nn.BatchNorm3d(o)
    return layer


def run(layer: nn.Module, x: Tensor) -> Tensor:
    return layer.bn(layer.conv(x))


def shift(x: Tensor, d: int) -> Tensor:
    fold = x.shape[1] // d
    out = torch.zeros_like(x)
    out[:, :fold, :-1] = x[:, :fold, 1:]
    out[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
    out[:, 2 * fold :] = x[:, 2 * fold :]
    return out


class SE(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(channels, hidden, 1)
        self.fc2 = nn.Conv3d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.adaptive_avg_pool3d(x, 1)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(weight))))


# As released, worked out by hand; at 144 the rule rounds up.
HIDDEN = {36: 8, 54: 8, 72: 8, 108: 8, 144: 16, 216: 16, 432: 32}


class Block(nn.Module):
    def __init__(self, i: int, o: int, stride: int, se: bool, d: int) -> None:
        super().__init__()
        inner = int(o * 2.25)
        if stride != 1 or i != o:
            self.downsample = conv_bn(i, o, 1, stride)
        self.conv1 = conv_bn(i, inner, 1)
        self.conv2 = conv_bn(inner, inner, 3, stride, inner)
        self.conv3 = conv_bn(inner, o, 1)
        if se:
            self.se_module = SE(inner, HIDDEN[inner])
        self.d = d

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(run(self.conv1, shift(x, self.d)))
        out = run(self.conv2, out)
        if hasattr(self, "se_module"):
            out = self.se_module(out)
        out = run(self.conv3, out * torch.sigmoid(out))
        identity = run(self.downsample, x) if hasattr(self, "downsample") else x
        return torch.relu(identity + out)


class Backbone3d(nn.Module):
    def __init__(self, channels: int, width: int, blocks: tuple[int, ...], stem_stride: int, d: int) -> None:
        super().__init__()
        self.conv1_s = conv_bn(channels, width, 3, stem_stride)
        self.stages = []
        i = width
        for number, depth in enumerate(blocks):
            o = width * 2**number
            layers = []
            for b in range(depth):
                layers.append(Block(i, o, 2 if b == 0 else 1, b % 2 == 0, d))
                i = o
            self.stages.append(f"layer{number + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*layers))
        self.conv5 = conv_bn(i, int(i * 2.25), 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(run(self.conv1_s, x))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return torch.relu(run(self.conv5, x))


class Head(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.fc_cls = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_cls(nn.functional.adaptive_avg_pool3d(x, 1).flatten(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Module()
        self.spatial.conv = nn.Conv3d(2, 1, (1, 7, 7), padding=(0, 3, 3), bias=False)
        self.spatial.bn = nn.BatchNorm3d(1, momentum=0.01)
        self.conv_temporal_attention = nn.Conv1d(1, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat((x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)), dim=1)
        spatial = torch.sigmoid(run(self.spatial, pooled))
        time = torch.sigmoid(self.conv_temporal_attention(spatial.mean((3, 4))))
        return spatial * time.unsqueeze(-1).unsqueeze(-1)


class EPAMNet3d(nn.Module):
    """The released EPAM-Net without dropout."""

    def __init__(self, classes: int, width: int, rgb: tuple[int, ...], pose: tuple[int, ...]) -> None:
        super().__init__()
        self.rgb_backbone = Backbone3d(3, width, rgb, 2, 8)
        self.pose_backbone = Backbone3d(17, width, pose, 1, 4)
        self.attention_module = Attention()
        self.rgb_cls_head = Head(int(width * 2 ** (len(rgb) - 1) * 2.25), classes)
        self.pose_cls_head = Head(int(width * 2 ** (len(pose) - 1) * 2.25), classes)

    def forward(self, rgb: Tensor, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        seen, pose = self.rgb_backbone(rgb), self.pose_backbone(heatmaps)
        step = heatmaps.shape[2] // rgb.shape[2]
        seen = seen + seen * self.attention_module(pose[:, :, ::step])
        return self.rgb_cls_head(seen), self.pose_cls_head(pose)


def wild(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every weight and statistic a value that matters, so that no part can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            draw = torch.randn(value.shape, generator=generator)
            fan = max(value[0].numel(), 1) if value.ndim > 1 else 4
            positive = name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1)
            value.copy_(0.5 + draw.abs() if positive else draw / fan**0.5)
    return network

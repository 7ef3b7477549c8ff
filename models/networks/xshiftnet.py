"""X-ShiftNet (EPAM-Net, sections 3.1 and 3.2): X3D's blocks that look through time by a shift.

Convolutions are 2-D over clips x frames, channels-last: the arithmetic of 3-D ones in half the time on a CPU.
Modules keep the released names, so that released weights load by name.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harcache.pipeline.base.errors import HarcacheError

__all__ = [
    "Backbone",
    "ClassHead",
    "PoseXShiftNet",
    "RGBXShiftNet",
    "initialise",
    "pose_backbone",
    "rgb_backbone",
    "shift_frames",
]

_EXPANSION = 2.25
_SE_REDUCTION = 16
_X3D_STEM_FRAMES = 5


def shift_frames(x: Tensor, folded: int) -> Tensor:
    """Move the first ``folded`` channels one frame back in time and the next ``folded`` one forward.

    ``x`` is (B, T, C, H, W) of any dtype, and so is the result: frame t takes the first group from t + 1, the
    second from t - 1, and zeros come in at the ends. Each value is copied once and the memory layout is kept.
    """
    if torch.compiler.is_exporting():
        return _shifted_by_parts(x, folded)
    return _Shift.apply(x, folded)


class _Shift(torch.autograd.Function):
    """The gradient is the opposite shift: one copy again, where autograd of assignments takes several."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, folded: int) -> Tensor:
        ctx.folded = folded
        return _shifted(x, slice(0, folded), slice(folded, 2 * folded))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _shifted(gradient, slice(ctx.folded, 2 * ctx.folded), slice(0, ctx.folded)), None


def _shifted(x: Tensor, back: slice, forward: slice) -> Tensor:
    result = torch.empty_like(x)
    result[:, :-1, back] = x[:, 1:, back]
    result[:, -1, back] = 0
    result[:, 1:, forward] = x[:, :-1, forward]
    result[:, 0, forward] = 0
    rest = slice(max(back.stop, forward.stop), None)
    result[:, :, rest] = x[:, :, rest]
    return result


def _shifted_by_parts(x: Tensor, folded: int) -> Tensor:
    """Shift in few operations: in other programs' graphs each assignment to a slice becomes a dozen."""
    back = functional.pad(x[:, 1:, :folded], (0, 0, 0, 0, 0, 0, 0, 1))
    forward = functional.pad(x[:, :-1, folded : 2 * folded], (0, 0, 0, 0, 0, 0, 1, 0))
    return torch.cat([back, forward, x[:, :, 2 * folded :]], 2)


class _FrameConv(nn.Conv2d):
    """A 2-D convolution of every frame of (B, T, C, H, W), by its own weight or by a given one."""

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        weight = self.weight if weight is None else weight
        return self._conv_forward(x.flatten(0, 1), weight, bias).unflatten(0, x.shape[:2])


class _TemporalConv(nn.Conv3d):
    """A 3-D convolution of (B, T, C, H, W), by its own weight or by a given one."""

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        weight = self.weight if weight is None else weight
        return self._conv_forward(x.transpose(1, 2), weight, bias).transpose(1, 2)


class _ConvBN(nn.Module):
    """A convolution without bias, then, where wanted, batch normalisation and with it ReLU."""

    def __init__(self, conv: _FrameConv | _TemporalConv, bn: bool = True, relu: bool = False) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels) if bn else None
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        if self.bn is None:
            return self.conv(x)
        if self.bn.training:
            frames = self.bn(self.conv(x).flatten(0, 1))
        else:
            frames = self.conv(x, *_folded(self.conv.weight, self.bn)).flatten(0, 1)
        if self.relu:
            frames = functional.relu(frames, inplace=True)
        return frames.unflatten(0, x.shape[:2])


def _folded(weight: Tensor, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that normalises with known statistics by itself."""
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight * (bn.running_var + bn.eps).rsqrt()
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bn.bias - bn.running_mean * scale


def _pointwise(channels_in: int, channels_out: int) -> _FrameConv:
    return _FrameConv(channels_in, channels_out, 1, bias=False)


def _depthwise(channels: int, size: int, stride: int, frames: int) -> _FrameConv | _TemporalConv:
    """Convolve each channel by itself over ``size`` x ``size`` pixels of ``frames`` frames."""
    if frames == 1:
        return _FrameConv(channels, channels, size, stride, size // 2, groups=channels, bias=False)
    kernel, padding = (frames, size, size), (frames // 2, size // 2, size // 2)
    return _TemporalConv(
        channels, channels, kernel, (1, stride, stride), padding, groups=channels, bias=False
    )


class _SqueezeExcitation(nn.Module):
    """Weights for channels from their means over time and space together."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = _se_width(channels)
        self.fc1 = nn.Conv2d(channels, width, 1)
        self.fc2 = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = _mean_of_pixels(x)[..., None, None]
        weights = self.fc2(functional.relu(self.fc1(means))).sigmoid()
        return x * weights.unsqueeze(1)


def _mean_of_pixels(x: Tensor) -> Tensor:
    """Average (B, T, C, H, W) over time and space, channels last so that the gradient comes back so too."""
    return x.movedim(2, -1).mean((1, 2, 3))


def _se_width(channels: int) -> int:
    """Round a sixteenth of ``channels`` to a multiple of 8, at least 8, that loses at most a tenth of it."""
    wanted = channels / _SE_REDUCTION
    width = max(8, int(wanted + 4) // 8 * 8)
    return width + 8 if width < 0.9 * wanted else width


class _Block(nn.Module):
    """An inverted residual block: shift, 1x1, depthwise, (squeeze-excitation), swish, 1x1; identity; ReLU."""

    def __init__(
        self, channels_in: int, channels: int, stride: int, se: bool, shift: float, temporal_kernel: int
    ) -> None:
        super().__init__()
        inner = int(_EXPANSION * channels)
        # The paper's proportion counts both directions.
        self.folded = int(channels_in * shift / 2)
        self.stride = stride
        changed = stride != 1 or channels_in != channels
        self.downsample = _ConvBN(_pointwise(channels_in, channels)) if changed else None
        self.conv1 = _ConvBN(_pointwise(channels_in, inner), relu=True)
        self.conv2 = _ConvBN(_depthwise(inner, 3, stride, temporal_kernel))
        self.se_module = _SqueezeExcitation(inner) if se else None
        self.conv3 = _ConvBN(_pointwise(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        out = shift_frames(x, self.folded) if self.folded else x
        out = self.conv2(self.conv1(out))
        if self.se_module is not None:
            out = self.se_module(out)
        out = self.conv3(functional.silu(out))
        if self.downsample is not None:
            x = self.downsample(_strided(x, self.stride))
        return functional.relu(out + x, inplace=True)


def _strided(x: Tensor, stride: int) -> Tensor:
    """Take every ``stride``-th pixel of a row and every such row.

    A 1x1 convolution that strides by itself corrupts memory on some CPUs when it has under 16 channels, and
    the gradient of a slice is not channels-last; a pooling of single pixels has neither fault.
    """
    return functional.avg_pool2d(x.flatten(0, 1), 1, stride).unflatten(0, x.shape[:2])


class Backbone(nn.Module):
    """The features of one stream (table 2): (B, in_channels, T, H, W) float to (B, features, T, h, w).

    Stage i has ``width * 2**i`` channels and halves height and width; ``features`` is 2.25 times the last.
    ``shift`` is the share of channels that move in time, both directions together. A ``temporal_kernel``
    above 1 gives X3D (tables 5 and 6): depthwise convolutions over so many frames, over 5 in the stem.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        blocks: Sequence[int],
        stem_stride: int,
        shift: float,
        temporal_kernel: int,
    ) -> None:
        super().__init__()
        shifted = temporal_kernel == 1
        stem = _FrameConv(in_channels, width, 3, stem_stride, padding=1, bias=False)
        self.conv1_s = _ConvBN(stem, bn=shifted, relu=shifted)
        self.conv1_t = None if shifted else _ConvBN(_depthwise(width, 1, 1, _X3D_STEM_FRAMES), relu=True)
        channels = width
        for i, depth in enumerate(blocks):
            stage = nn.Sequential()
            for block in range(depth):
                first = block == 0
                stage.append(_Block(channels, width << i, 1 + first, block % 2 == 0, shift, temporal_kernel))
                channels = width << i
            self.add_module(f"layer{i + 1}", stage)
        self.features = int(_EXPANSION * channels)
        self.conv5 = _ConvBN(_pointwise(channels, self.features), relu=True)
        self.in_channels = in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the features; raise HarcacheError for an input of another shape."""
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise HarcacheError(
                f"the input is {tuple(x.shape)}; expected (clips, {self.in_channels}, frames, height, width)"
            )
        x = x.transpose(1, 2)
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
        for module in self.children():
            x = module(x)
        return x.transpose(1, 2)


class ClassHead(nn.Module):
    """Features (B, C, T, h, w) to logits (B, num_classes): global average, dropout, one linear layer.

    ``hidden`` puts a layer of that width without bias, and ReLU, before it: 2048 in X3D's RGB head.
    """

    def __init__(self, features: int, num_classes: int, dropout: float, hidden: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden, bias=False) if hidden else None
        self.dropout = nn.Dropout(dropout)
        self.fc_cls = nn.Linear(hidden or features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = _mean_of_pixels(x.transpose(1, 2))
        if self.fc1 is not None:
            x = functional.relu(self.fc1(x))
        return self.fc_cls(self.dropout(x))


class _Stream(nn.Module):
    """A backbone and a head; ``config`` holds the arguments that make the same network again."""

    def __init__(self, backbone: Backbone, head: ClassHead, config: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = backbone
        self.cls_head = head
        self.config = config
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of a batch of clips."""
        return self.cls_head(self.backbone(x))


class RGBXShiftNet(_Stream):
    """The RGB stream by itself: (B, 3, T, H, W) float, normalised, to logits (B, num_classes).

    Defaults are the paper's (table 2, a quarter of the channels shifted). X3D is ``shift=0``,
    ``temporal_kernel=3``, ``hidden=2048``. A HarcacheError names an input of another shape.
    """

    def __init__(
        self,
        num_classes: int,
        width: int = 24,
        blocks: Sequence[int] = (3, 5, 11, 7),
        dropout: float = 0.5,
        shift: float = 0.25,
        temporal_kernel: int = 1,
        hidden: int | None = None,
    ) -> None:
        config = {
            "num_classes": num_classes,
            "width": width,
            "blocks": list(blocks),
            "dropout": dropout,
            "shift": shift,
            "temporal_kernel": temporal_kernel,
            "hidden": hidden,
        }
        backbone = rgb_backbone(width, blocks, shift, temporal_kernel)
        super().__init__(backbone, ClassHead(backbone.features, num_classes, dropout, hidden), config)


class PoseXShiftNet(_Stream):
    """The pose stream by itself: (B, in_channels, T, h, w) float heatmaps 0..1 to logits (B, num_classes).

    Defaults are the paper's (table 2, half of the channels shifted). X3D is ``shift=0``,
    ``temporal_kernel=3``. A HarcacheError names an input of another shape.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 17,
        width: int = 24,
        blocks: Sequence[int] = (5, 11, 7),
        dropout: float = 0.5,
        shift: float = 0.5,
        temporal_kernel: int = 1,
    ) -> None:
        config = {
            "num_classes": num_classes,
            "in_channels": in_channels,
            "width": width,
            "blocks": list(blocks),
            "dropout": dropout,
            "shift": shift,
            "temporal_kernel": temporal_kernel,
        }
        backbone = pose_backbone(in_channels, width, blocks, shift, temporal_kernel)
        super().__init__(backbone, ClassHead(backbone.features, num_classes, dropout), config)


def rgb_backbone(
    width: int, blocks: Sequence[int], shift: float = 0.25, temporal_kernel: int = 1
) -> Backbone:
    """Return the RGB stream's backbone: its stem halves the frame."""
    return Backbone(3, width, blocks, 2, shift, temporal_kernel)


def pose_backbone(
    in_channels: int, width: int, blocks: Sequence[int], shift: float = 0.5, temporal_kernel: int = 1
) -> Backbone:
    """Return the pose stream's backbone: its stem keeps the heatmap's size."""
    return Backbone(in_channels, width, blocks, 1, shift, temporal_kernel)


def initialise(network: nn.Module) -> None:
    """Draw fresh weights as the released implementation does; every block starts as its identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, _Block) and module.conv3.bn is not None:
            nn.init.zeros_(module.conv3.bn.weight)

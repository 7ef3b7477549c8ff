"""Adaptive graph convolutions over skeletons: 2s-AGCN's joint stream, as AMFI-Net takes it (section 3.2).

The graph is the body's plus one that is learned plus one drawn from each clip. Biases that a softmax or a
batch normalisation would cancel are left out, so every parameter matters.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harcache.models.networks.xshiftnet import initialise
from harcache.pipeline.base.errors import HarcacheError, did_you_mean

__all__ = ["AGCN", "GRAPHS", "AGCNBackbone", "partitions"]

GRAPHS: dict[str, tuple[int, ...]] = {
    "coco17": (0, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14),
    "ntu25": (1, 20, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, 20, 22, 7, 24, 11),
}
"""Each joint's neighbour towards the body's centre, which is its own: COCO's nose, Kinect's upper spine."""

_CHANNELS = 3
_BLOCKS = ((64, 1), (64, 1), (64, 1), (128, 2), (128, 1), (128, 1), (256, 2), (256, 1), (256, 1), (512, 1))
_SUBSETS = 3
_EMBEDDING = 4
_FRAMES = 9


def partitions(graph: str) -> Tensor:
    """Return the body's graph, split as ST-GCN splits it: (3, V, V) float32, column v says what v takes.

    The subsets are v itself, its neighbour towards the centre (centripetal) and those away from it
    (centrifugal). Each column sums to 1, or to 0 where there is no such neighbour.

    Raises:
        HarcacheError: ``graph`` is not in ``GRAPHS``.
    """
    if graph not in GRAPHS:
        raise HarcacheError(f"there is no graph '{graph}'. {did_you_mean(graph, GRAPHS)}")
    inner = torch.tensor(GRAPHS[graph])
    root = torch.eye(len(inner))
    centripetal = root[inner].T * (1 - root)
    centrifugal = centripetal.T / centripetal.sum(1).clamp(min=1)
    return torch.stack([root, centripetal, centrifugal])


class AGCNBackbone(nn.Module):
    """The features of the skeleton stream: (B, 3, T, V, M) float to (B, 512) float.

    Channels are x, y, z in metres (graph "ntu25") or x, y, score (graph "coco17"); T frames, V joints and M
    persons, T and M of any number. Persons share all weights and count alike in the mean. NaN is read as 0,
    which stands for a joint or a person that is not there.

    Time is halved twice, where 2s-AGCN doubles its channels, and not in the block of 512 that AMFI-Net adds.
    ``dropout`` stands between the spatial and the temporal convolution of each block.

    Raises:
        HarcacheError: there is no such graph, or the input has another shape.
    """

    def __init__(self, graph: str, dropout: float) -> None:
        super().__init__()
        adjacency = partitions(graph)
        self.joints = adjacency.shape[-1]
        self.data_bn = nn.BatchNorm1d(_CHANNELS * self.joints)
        self.blocks = nn.Sequential()
        channels = _CHANNELS
        for width, stride in _BLOCKS:
            self.blocks.append(_Block(channels, width, stride, adjacency, dropout))
            channels = width
        self.features = channels
        initialise(self)

    def forward(self, skeletons: Tensor) -> Tensor:
        """Return the features: means over persons, time and joints."""
        self._check(skeletons)
        clips, persons = skeletons.shape[0], skeletons.shape[4]
        x = skeletons.masked_fill(skeletons.isnan(), 0)
        x = x.permute(0, 4, 1, 3, 2).flatten(0, 1)
        x = self.data_bn(x.flatten(1, 2)).unflatten(1, x.shape[1:3])
        x = self.blocks(x.transpose(2, 3))
        return x.mean((2, 3)).unflatten(0, (clips, persons)).mean(1)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 5 or x.shape[1] != _CHANNELS or x.shape[3] != self.joints or 0 in x.shape[2:]:
            raise HarcacheError(
                f"the skeletons are {tuple(x.shape)}; expected (clips, {_CHANNELS}, frames, {self.joints}, "
                f"persons), at least one frame and person; transpose them or choose the graph of these joints"
            )


class _Block(nn.Module):
    """Spatial then temporal convolution: (N, C, T, V) to (N, channels, T / stride, V), T rounded up.

    The identity goes around both, but in the block that sees the joints themselves.
    """

    def __init__(
        self, channels_in: int, channels: int, stride: int, adjacency: Tensor, dropout: float
    ) -> None:
        super().__init__()
        self.spatial = _AdaptiveConv(channels_in, channels, adjacency)
        self.dropout = nn.Dropout(dropout)
        self.temporal = _conv_bn(channels, channels, _FRAMES, stride)
        self.shortcut = None if channels_in == _CHANNELS else _shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.temporal(self.dropout(self.spatial(x)))
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        return functional.relu(out)


class _AdaptiveConv(nn.Module):
    """Equation 6: joints take from each other along fixed (A) + learned (B) + the clip's own graph (C)."""

    def __init__(self, channels_in: int, channels: int, adjacency: Tensor) -> None:
        super().__init__()
        self.fixed: Tensor
        self.register_buffer("fixed", adjacency, persistent=False)
        self.learned = nn.Parameter(torch.zeros_like(adjacency))
        embedded = _SUBSETS * (channels // _EMBEDDING)
        self.theta = nn.Conv2d(channels_in, embedded, 1, bias=False)
        self.phi = nn.Conv2d(channels_in, embedded, 1)
        self.conv = nn.Conv2d(_SUBSETS * channels_in, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(channels_in, channels, 1)
        # Starts as its shortcut, as 2s-AGCN does: the graphs come in while training goes on.
        nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        graph = self.fixed + self.learned + self._similarity(x)
        mixed = x.flatten(1, 2).unsqueeze(1) @ graph
        mixed = mixed.unflatten(2, x.shape[1:3]).flatten(1, 2)
        return functional.relu(self.bn(self.conv(mixed)) + self.shortcut(x))

    def _similarity(self, x: Tensor) -> Tensor:
        """Embedded Gaussian of the joints' tracks: (N, 3, V, V), each column sums to 1."""
        theta, phi = (conv(x).unflatten(1, (_SUBSETS, -1)).flatten(2, 3) for conv in (self.theta, self.phi))
        return (theta.mT / theta.shape[2] @ phi).softmax(2)


def _conv_bn(channels_in: int, channels: int, frames: int, stride: int) -> nn.Sequential:
    """Convolve each joint over time, then normalise."""
    kernel, padding = (frames, 1), (frames // 2, 0)
    conv = nn.Conv2d(channels_in, channels, kernel, (stride, 1), padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


def _shortcut(channels_in: int, channels: int, stride: int) -> nn.Module:
    same = channels_in == channels and stride == 1
    return nn.Identity() if same else _conv_bn(channels_in, channels, 1, stride)


class AGCN(nn.Module):
    """The skeleton stream by itself: (B, 3, T, V, M) float to logits (B, num_classes); see AGCNBackbone.

    The paper trains it by SGD, learning rate 0.1, weight decay 5e-4. ``dropout`` is 2s-AGCN's; the paper does
    not name its own.
    """

    def __init__(self, num_classes: int, graph: str = "coco17", dropout: float = 0.5) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"num_classes": num_classes, "graph": graph, "dropout": dropout}
        self.backbone = AGCNBackbone(graph, dropout)
        self.fc_cls = nn.Linear(self.backbone.features, num_classes)

    def forward(self, skeletons: Tensor) -> Tensor:
        """Return the logits of a batch of clips."""
        return self.fc_cls(self.backbone(skeletons))

"""What every network is fed and costs, beside the figures that the papers print.

Multiply-adds are those of convolutions and linear layers, as PyTorch counts them without computing.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harcache.models.networks.agcn import AGCN
from harcache.models.networks.amfi_net import AMFINet, ResNet3D18
from harcache.models.networks.attention import NestedAttention, SpatialTemporalAttention
from harcache.models.networks.epam_net import EPAMNet
from harcache.models.networks.xshiftnet import PoseXShiftNet, RGBXShiftNet

__all__ = ["Summary", "as_table", "count_cost", "input_shapes", "measure_latency", "summarise"]

_WARM_UP, _RUNS = 2, 9
_X3D: dict[str, Any] = {"shift": 0.0, "temporal_kernel": 3}


@dataclass(frozen=True, slots=True)
class Summary:
    """One network: its learned parameters and its multiply-adds for one clip, ours and as printed."""

    name: str
    inputs: str
    parameters: int
    multiply_adds: int
    paper_parameters: str
    paper_multiply_adds: str


def input_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return each input's name and the shape of one clip of it in the papers: channels first, no batch."""
    rgb, small_rgb, heatmaps = (3, 16, 224, 224), (3, 16, 112, 112), (48, 56, 56)
    match network:
        case EPAMNet():
            return {"rgb": rgb, "heatmaps": (network.pose_backbone.in_channels, *heatmaps)}
        case RGBXShiftNet():
            return {"rgb": rgb}
        case PoseXShiftNet():
            return {"heatmaps": (network.backbone.in_channels, *heatmaps)}
        case AMFINet():
            return {"rgb": small_rgb, "skeletons": (3, 300, network.skeleton_backbone.joints, 2)}
        case ResNet3D18():
            return {"rgb": small_rgb}
        case AGCN():
            return {"skeletons": (3, 300, network.backbone.joints, 2)}
        case NestedAttention() | SpatialTemporalAttention():
            return {"pose features": (216, 16, 7, 7)}
    raise TypeError(f"no paper says what {type(network).__name__} is fed")


def summarise(num_classes: int = 60) -> list[Summary]:
    """Count what each network has and does with one clip, in the order of the papers' tables."""
    return [_summary(*row) for row in _rows(num_classes)]


def count_cost(network: nn.Module, shapes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return a network's parameters, and its multiply-adds for one clip of these ``shapes``."""
    empty = deepcopy(network).to("meta").eval()
    inputs = [torch.empty(1, *shape, device="meta") for shape in shapes]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        empty(*inputs)
    return sum(value.numel() for value in empty.parameters()), counter.get_total_flops() // 2


@torch.inference_mode()
def measure_latency(network: nn.Module, shapes: Sequence[Sequence[int]]) -> float:
    """Return the median seconds in which a network, on its device, answers one clip of these ``shapes``.

    In float32, from inputs to results on the device; the network must be in eval mode.
    """
    device = next(network.parameters()).device
    inputs = [torch.zeros(1, *shape, device=device) for shape in shapes]
    seconds = []
    for _ in range(_WARM_UP + _RUNS):
        start = perf_counter()
        network(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(perf_counter() - start)
    return median(seconds[_WARM_UP:])


def as_table(summaries: Sequence[Summary]) -> str:
    """Return the summaries as text in columns, one line a network."""
    header = ("network", "input of one clip", "parameters", "paper", "multiply-adds", "paper")
    rows = [
        (
            row.name,
            row.inputs,
            f"{row.parameters:,}",
            row.paper_parameters,
            f"{row.multiply_adds / 1e9:.3f} G",
            row.paper_multiply_adds,
        )
        for row in summaries
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    )


_Row = tuple[str, Callable[[], nn.Module], str, str]


def _rows(num_classes: int) -> list[_Row]:
    """Return the name, how to build it, and the paper's parameters and multiply-adds."""
    return [
        ("RGB-X-ShiftNet", lambda: RGBXShiftNet(num_classes), "2.0 M", "4.5 G"),
        ("Pose-X-ShiftNet", lambda: PoseXShiftNet(num_classes), "514.7 k", "3.6 G"),
        ("X3D, RGB", lambda: RGBXShiftNet(num_classes, hidden=2048, **_X3D), "3.1 M", "5.0 G"),
        ("X3D, pose", lambda: PoseXShiftNet(num_classes, **_X3D), "586.2 k", "4.0 G"),
        ("EPAM-Net", lambda: EPAMNet(num_classes), "2.5 M", "8.1 G"),
        ("EPAM-Net, attention of [38]", lambda: EPAMNet(num_classes, "spatial_temporal"), "-", "-"),
        ("EPAM-Net, no attention", lambda: EPAMNet(num_classes, "none"), "-", "-"),
        ("nested attention", NestedAttention, "107", "-"),
        ("attention of [38]", lambda: SpatialTemporalAttention(216, 16), "2.87 k", "-"),
        ("AMFI-Net", lambda: AMFINet(num_classes, "ntu25"), "43.26 M", "5.67 G"),
        ("AMFI-Net, COCO's keypoints", lambda: AMFINet(num_classes, "coco17"), "-", "-"),
        ("ResNet3D-18", lambda: ResNet3D18(num_classes), "33 M", "-"),
        ("AGCN", lambda: AGCN(num_classes, "ntu25"), "-", "-"),
    ]


def _summary(name: str, build: Callable[[], nn.Module], parameters: str, multiply_adds: str) -> Summary:
    network = build()
    shapes = input_shapes(network)
    shown = ", ".join("x".join(map(str, shape)) for shape in shapes.values())
    counts = count_cost(network, list(shapes.values()))
    return Summary(name, shown, *counts, parameters, multiply_adds)

"""Which convolutions of a pretrained network run faster on a CPU in another way, and that way."""

from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

from harcache.models.pretrained.winograd import WinogradConv

__all__ = ["speed_up_convolutions"]


def speed_up_convolutions(module: nn.Module, device: str) -> None:
    """On a CPU, make convolutions in float32 run in the quickest way, each of which rounds elsewhere.

    1x1 ones by oneDNN: in one thread and small batches PyTorch copies their input and multiplies matrices
    instead, which took a third of YOLO's time. Many 3x3 ones with fewer multiplications (`WinogradConv`).
    """
    if device != "cpu":
        return
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if WinogradConv.suits(layer):
                setattr(parent, name, WinogradConv(layer))
            elif _is_one_by_one(layer) and torch.backends.mkldnn.is_available():
                layer.forward = partial(_by_onednn, layer)  # type: ignore[method-assign]


def _is_one_by_one(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        isinstance(layer, nn.Conv2d)
        and layer.weight.dtype == torch.float32
        and layer.kernel_size == (1, 1)
        and layer.padding == (0, 0)
    )


def _by_onednn(layer: nn.Conv2d, features: Tensor) -> Tensor:
    return torch.mkldnn_convolution(
        features, layer.weight, layer.bias, (0, 0), layer.stride, layer.dilation, layer.groups
    )

"""3x3 convolutions on a CPU by Winograd's minimal filtering, with a quarter of the multiplications.

oneDNN's plain ones already run at the processor's full rate, so that only fewer multiplications are faster.
Paid for with four times the weights' memory.
"""

from math import prod
from threading import local
from typing import TypeGuard

import torch
from torch import Tensor, nn

__all__ = ["WinogradConv"]

_TILE, _WINDOW = 4, 6  # a tile of the output, and what it sees of the input
# F(4x4, 3x3) of Lavin and Gray, 2016 (arXiv 1509.09308): polynomials that are multiplied at the points 0, 1,
# -1, 1/2, -2 and infinity. With the paper's 2 in place of 1/2 results are off by 2.5 times as much.
_FROM_INPUT = (
    (1, -3 / 2, -2, 3 / 2, 1, 0),
    (0, -1, 1 / 2, 5 / 2, 1, 0),
    (0, 1, -5 / 2, 1 / 2, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 1 / 2, -1, -1 / 2, 1, 0),
    (0, 1, -3 / 2, -2, 3 / 2, 1),
)
_FROM_WEIGHTS = (
    (1, 0, 0),
    (1 / 3, 1 / 3, 1 / 3),
    (-1 / 3, 1 / 3, -1 / 3),
    (-16 / 15, -8 / 15, -4 / 15),
    (1 / 15, -2 / 15, 4 / 15),
    (0, 0, 1),
)
_TO_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 1 / 2, -2, 0),
    (0, 1, 1, 1 / 4, 4, 0),
    (0, 1, -1, 1 / 8, -8, 1),
)
_AT_ONE = _WINDOW + 1  # the point (1, 1), whose value comes whole into all of a tile

_TILES_AT_ONCE = 96  # about as many as a core's cache holds
# With fewer channels the transforms take what multiplying saves; with more, as maps are small there, reading
# the transformed weights does.
_CHANNELS = range(64, 257, 16)


class WinogradConv(nn.Module):
    """Computes what a 3x3 convolution does, without gradients: (B, C, H, W) to (B, K, H, W), float32.

    Exact to a float's last digits. An image's result depends neither on its place in a batch nor on the
    others there, only on the batch's size.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        transform = torch.tensor(_FROM_WEIGHTS, dtype=torch.float64)
        weight = layer.weight.detach().permute(2, 3, 1, 0)
        at_points = torch.kron(transform, transform).to(weight.dtype) @ weight.flatten(0, 1).flatten(1)
        self.register_buffer("weight", at_points.view(-1, *weight.shape[2:]))  # (36, C, K)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    @staticmethod
    def suits(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Return whether ``layer`` is a convolution of this kind that is quicker so."""
        return (
            torch.backends.mkl.is_available()
            and isinstance(layer, nn.Conv2d)
            and layer.weight.dtype == torch.float32
            and layer.kernel_size == (3, 3)
            and layer.stride == layer.padding == layer.dilation == (1, 1)
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and layer.in_channels in _CHANNELS
            and layer.out_channels in _CHANNELS
        )

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Convolve; what comes out is channels-last."""
        batch, channels, height, width = features.shape
        down, across = -(-height // _TILE), -(-width // _TILE)
        images, rows = _at_once(batch, down, across)
        padded = _scratch.take("padded", images, _TILE * down + 2, _TILE * across + 2, channels)
        output = features.new_empty(batch, _TILE * down, _TILE * across, self.weight.shape[2])
        for first in range(0, batch, images):
            _pad(features[first : first + images].permute(0, 2, 3, 1), padded)
            for top in range(0, _TILE * down, _TILE * rows):
                self._convolve(
                    padded[:, top : top + _TILE * rows + 2],
                    output[first : first + images, top : top + _TILE * rows],
                )
        return output[:, :height, :width].contiguous().permute(0, 3, 1, 2)

    def _convolve(self, padded: Tensor, output: Tensor) -> None:
        """Fill whole tiles, (n, h, w, K), from what they see, (n, h + 2, w + 2, C)."""
        filters = output.shape[3]
        windows = padded.unfold(1, _WINDOW, _TILE).unfold(2, _WINDOW, _TILE).permute(4, 5, 0, 1, 2, 3)
        tiles, channels = windows.shape[2:5].numel(), windows.shape[5]
        seen = _scratch.take("small", *windows.shape).copy_(windows)
        at_points = _transform(_scratch.from_input, seen, tiles * channels)
        products = _scratch.take("products", _WINDOW * _WINDOW, tiles, filters)
        torch.bmm(at_points.view(-1, tiles, channels), self.weight, out=products)
        if self.bias is not None:
            products[_AT_ONE] += self.bias
        found = _transform(_scratch.to_output, products, tiles * filters)
        found = found.view(_TILE, _TILE, *windows.shape[2:5], filters)
        output.unflatten(2, (-1, _TILE)).unflatten(1, (-1, _TILE)).copy_(found.permute(2, 3, 0, 4, 1, 5))


def _at_once(batch: int, down: int, across: int) -> tuple[int, int]:
    """Return how many images, of equal parts of the batch, and how many of their rows of tiles to work on."""
    tiles = down * across
    if tiles > _TILES_AT_ONCE:
        return 1, max(1, _TILES_AT_ONCE // across)
    return max(n for n in range(1, batch + 1) if batch % n == 0 and n * tiles <= _TILES_AT_ONCE), down


def _pad(images: Tensor, padded: Tensor) -> None:
    """Copy (n, h, w, C) into the middle of zeros."""
    _, height, width, _ = images.shape
    padded[:, 0] = padded[:, :, 0] = 0
    padded[:, height + 1 :] = padded[:, :, width + 1 :] = 0
    padded[:, 1 : height + 1, 1 : width + 1] = images


def _transform(matrix: Tensor, values: Tensor, size: int) -> Tensor:
    """Multiply by ``matrix``, (n, 6), from both sides: (6, 6, size) to (n, n, size), in `_scratch`."""
    to, of = matrix.shape
    halfway = _scratch.take("halfway", to, of * size)
    torch.mm(matrix, values.view(of, of * size), out=halfway)
    found = _scratch.take("small", to, to, size)
    return torch.bmm(matrix.expand(to, to, of), halfway.view(to, of, size), out=found)


class _Scratch(local):
    """A thread's memory between the steps, which stays in the cache as all layers use the same."""

    def __init__(self) -> None:
        self._areas: dict[str, Tensor] = {}
        with torch.inference_mode(False):
            self.from_input, self.to_output = torch.tensor(_FROM_INPUT), torch.tensor(_TO_OUTPUT)

    def take(self, name: str, *shape: int) -> Tensor:
        """Return memory of this name, holding anything; whoever had it before loses it."""
        size = prod(shape)
        area = self._areas.get(name)
        if area is None or len(area) < size:
            with torch.inference_mode(False):
                area = self._areas[name] = torch.empty(size)
        return area[:size].view(shape)


_scratch = _Scratch()

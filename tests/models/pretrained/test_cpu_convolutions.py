"""Convolutions that are faster on a CPU compute what plain ones do."""

import copy

import torch
from torch import nn

from harcache.models.pretrained.cpu_convolutions import speed_up_convolutions
from harcache.models.pretrained.winograd import WinogradConv


def test_quick_convolutions_compute_what_others_do() -> None:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(6, 8, 1),
        nn.Conv2d(8, 12, 1, 2, groups=4, bias=False),
        nn.Conv2d(12, 4, 1, padding=1),
    ]
    wide = [nn.Conv2d(4, 64, 1), nn.Conv2d(64, 64, 3, padding=1)]
    plain = nn.Sequential(*layers, nn.Conv2d(4, 4, 3), *wide).eval()
    quick = copy.deepcopy(plain)
    speed_up_convolutions(quick, "cpu")
    assert ["forward" in vars(layer) for layer in quick] == [True, True, False, False, True, False]
    assert isinstance(quick[-1], WinogradConv)
    features = torch.rand(3, 6, 14, 10)
    with torch.inference_mode():
        torch.testing.assert_close(quick(features), plain(features))

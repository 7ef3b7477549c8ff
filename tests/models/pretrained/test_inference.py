"""What the networks give does not depend on how many threads PyTorch was given."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from harcache.models.detectors.registry import load_detector
from harcache.models.pretrained.inference import quicken, repeatable
from harcache.models.pretrained.winograd import WinogradConv
from harcache.pipeline.params import DetectParams
from tests.models.extraction import detect


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_boxes_are_the_same_with_any_number_of_threads() -> None:
    detector = load_detector(DetectParams("ultralytics", "demo-yolo", 256, 0.001, 0.9, 300, "float32"))
    frames = list(np.random.default_rng(0).integers(0, 256, (3, 240, 320, 3), np.uint8))
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(np.concatenate(detect(detector, frames)).tobytes())
    assert len(found[0]) > 100
    assert found == found[:1] * 3


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
    quicken(quick, "cpu")
    assert ["forward" in vars(layer) for layer in quick] == [True, True, False, False, True, False]
    assert isinstance(quick[-1], WinogradConv)
    features = torch.rand(3, 6, 14, 10)
    with torch.inference_mode():
        torch.testing.assert_close(quick(features), plain(features))


def test_the_number_of_threads_is_given_back_after_an_error() -> None:
    torch.set_num_threads(3)
    with pytest.raises(RuntimeError, match="stop"), repeatable("float32"):
        assert torch.get_num_threads() == 1
        raise RuntimeError("stop")
    assert torch.get_num_threads() == 3

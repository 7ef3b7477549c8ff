"""What the networks give does not depend on how many threads PyTorch was given."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from harcache.models.detectors.registry import load_detector
from harcache.models.pretrained.number_format import repeatable
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


def test_the_number_of_threads_is_given_back_after_an_error() -> None:
    torch.set_num_threads(3)
    with pytest.raises(RuntimeError, match="stop"), repeatable("float32"):
        assert torch.get_num_threads() == 1
        raise RuntimeError("stop")
    assert torch.get_num_threads() == 3

"""Promises of cache.streaming.preparation: normalised, mirrored, and nothing that a GPU waits for."""

import itertools

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from harcache.cache.streaming.heatmaps import draw_heatmaps
from harcache.cache.streaming.loader import ClipLoader
from harcache.cache.streaming.preparation import constant, prepare
from harcache.cache.streaming.skeletons import prepare_skeletons
from tests.cache.streaming.small_stores import (
    assert_same,
    copies,
    make,
)


def test_prepared_keypoints_are_heatmaps_mirrored_with_the_frames(stores, keypoint_store):
    dataset = make({"heatmaps": keypoint_store}, heatmap_source="keypoints")
    batch = copies(itertools.islice(ClipLoader(dataset, 2), 1))[0]
    batch["flip"] = torch.tensor([True, False])
    drawn = draw_heatmaps(batch["keypoints"], 28, 1.0)
    # What prepare makes of a volume, which other tests hold, is the measure.
    volume = {**batch, "heatmaps": (drawn * 255).round().to(torch.uint8)}
    expected = prepare({name: value for name, value in volume.items() if name != "keypoints"})
    ready = prepare(batch, heatmap_size=28, sigma=1.0)
    assert ready.keys() == expected.keys()
    assert ready["heatmaps"].stride() == expected["heatmaps"].stride()
    torch.testing.assert_close(ready["heatmaps"], expected["heatmaps"], atol=0.501 / 255, rtol=0)


def test_prepared_values_are_normalised(stores):
    batch = next(iter(ClipLoader(make(stores, train=False), 2)))
    ready = prepare(batch)
    assert ready.keys() == {"rgb", "heatmaps", "label", "index"}
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    expected = ((batch["rgb"].numpy() - mean) / std).transpose(0, 4, 1, 2, 3)
    np.testing.assert_allclose(ready["rgb"], expected, rtol=1e-5, atol=1e-6)
    expected = batch["heatmaps"].numpy().swapaxes(1, 2) / 255
    np.testing.assert_allclose(ready["heatmaps"], expected, rtol=1e-6)
    for name in ("rgb", "heatmaps"):
        frames = ready[name].transpose(1, 2).flatten(0, 1)
        assert frames.dtype == torch.float32
        assert frames.is_contiguous(memory_format=torch.channels_last)


def test_a_flip_mirrors_both_streams_and_swaps_left_and_right(stores):
    batch = copies(itertools.islice(ClipLoader(make(stores), 2), 1))[0]
    plain = prepare({**batch, "flip": torch.tensor([False, False])})
    mixed = prepare({**batch, "flip": torch.tensor([True, False])})
    for name in ("rgb", "heatmaps"):
        assert torch.equal(mixed[name][1], plain[name][1])
    assert torch.equal(mixed["rgb"][0], plain["rgb"][0].flip(-1))
    nose, left_eye, right_eye, *_, left_ankle, right_ankle = range(17)
    for one, other in [(nose, nose), (left_eye, right_eye), (left_ankle, right_ankle)]:
        assert torch.equal(mixed["heatmaps"][0, one], plain["heatmaps"][0, other].flip(-1))
        assert torch.equal(mixed["heatmaps"][0, other], plain["heatmaps"][0, one].flip(-1))


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="needs a PyTorch that knows GPUs, but no GPU")
@pytest.mark.parametrize("poses", ["heatmaps", "keypoints", "positions"])
def test_preparing_on_a_gpu_copies_nothing_to_it_that_its_host_would_wait_for(poses):
    copied = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), more=None):
            result = operator(*arguments, **(more or {}))
            devices = [value.device.type for value in arguments if isinstance(value, torch.Tensor)]
            if "cpu" in devices and result.device.type == "cuda":
                copied.append(str(operator))
            return result

    batch = {
        "rgb": ((4, 8, 8, 3), torch.uint8),
        "heatmaps": ((12, 17, 8, 8), torch.uint8),
        "keypoints": ((12, 2, 17, 3), torch.float16),
        "positions": ((12, 2, 25, 3), torch.float32),
        "flip": ((), torch.bool),
    }
    ways = {
        "heatmaps": [prepare],
        "keypoints": [prepare, prepare_skeletons],
        "positions": [prepare_skeletons],
    }
    constant.cache_clear()
    try:
        # Says what a GPU would be asked to do, without one.
        with FakeTensorMode():
            there = {
                name: torch.empty((2, *shape), dtype=dtype, device="cuda")
                for name, (shape, dtype) in batch.items()
                if name in ("rgb", "flip", poses)
            }
            for way in ways[poses]:
                way(there)
            with Watch():
                for way in ways[poses]:
                    way(there)
    finally:
        constant.cache_clear()
    assert copied == []


def test_preparing_leaves_the_batch_as_it_was(stores):
    batch = copies(itertools.islice(ClipLoader(make(stores, flip=1), 2), 1))[0]
    before = copies([batch])
    prepare(batch)
    assert_same([batch], before)

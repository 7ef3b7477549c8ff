"""Convolutions with fewer multiplications give what plain ones give, wherever an image lies in a batch."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harcache.models.pretrained.winograd import WinogradConv

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="written for MKL's products")


def make_conv(channels: int = 64, filters: int = 64, **options) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, filters, 3, padding=1, **options)


def make_features(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(64, 64), (64, 256), (112, 80)]),
    st.integers(1, 6),
    st.integers(1, 70),
    st.integers(1, 70),
    st.booleans(),
)
def test_the_result_is_as_exact_as_a_plain_convolution_s(channels, batch, height, width, bias):
    conv = make_conv(*channels, bias=bias)
    features = make_features(batch, channels[0], height, width)
    exact = F.conv2d(features.double(), conv.weight.double(), conv.bias.double() if bias else None, padding=1)
    found = WinogradConv(conv)(features)
    assert found.shape == exact.shape and found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("size", [(8, 6), (16, 12), (32, 24), (64, 48), (13, 50)])
def test_an_image_s_result_is_the_same_to_the_bit_in_every_place_of_a_batch(size):
    conv = WinogradConv(make_conv())
    features = make_features(8, 64, *size)
    found = conv(features)
    for places in range(1, 8):
        assert torch.equal(conv(features.roll(places, 0)), found.roll(places, 0))


def test_memory_is_used_again_inside_and_outside_of_inference_mode_and_holds_nothing_of_before():
    conv = WinogradConv(make_conv())
    small, large = make_features(2, 64, 9, 7), make_features(2, 64, 40, 30)
    before = conv(small)
    with torch.inference_mode():
        conv(large)
        assert torch.equal(conv(small), before)
    assert torch.equal(conv(small), before)


def test_threads_do_not_share_memory():
    conv = WinogradConv(make_conv())
    features = [make_features(4, 64, size, size) for size in (12, 24, 36, 48)]
    alone = [conv(each) for each in features]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(10):
            assert all(map(torch.equal, threads.map(conv, features), alone))


@pytest.mark.parametrize(
    "layer",
    [
        make_conv(32, 64),
        make_conv(72, 64),
        make_conv(512, 256),
        make_conv(groups=2),
        make_conv(stride=2),
        make_conv(dilation=2),
        make_conv(padding_mode="reflect"),
        make_conv(dtype=torch.bfloat16),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 5, padding=1),
        nn.ConvTranspose2d(64, 64, 3, padding=1),
        nn.Linear(64, 64),
    ],
    ids=str,
)
def test_other_layers_do_not_suit(layer):
    assert not WinogradConv.suits(layer)
    assert WinogradConv.suits(make_conv())

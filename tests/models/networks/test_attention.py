"""Promises of models.attention: sizes as published, maps within 0..1 that follow the features."""

import pytest
import torch

from harcache.models.networks.attention import NestedAttention, SpatialTemporalAttention
from harcache.pipeline.base.errors import HarcacheError


def count_parameters(network):
    return sum(value.numel() for value in network.parameters())


def test_the_attentions_have_the_published_numbers_of_parameters():
    assert count_parameters(NestedAttention()) == 107
    assert count_parameters(SpatialTemporalAttention(216, 16)) == 2_507


@pytest.mark.parametrize("attention", [NestedAttention(), SpatialTemporalAttention(12, 8)])
def test_a_map_covers_time_and_space_within_0_and_1(attention):
    weights = attention(torch.randn(2, 12, 8, 5, 7))
    assert weights.shape == (2, 1, 8, 5, 7)
    assert weights.min() > 0 and weights.max() < 1


def test_the_nested_map_is_the_spatial_one_times_one_weight_a_frame():
    attention = NestedAttention().eval()
    x = torch.randn(2, 12, 8, 5, 7)
    ratio = attention(x) / attention.spatial(x)
    torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio))
    assert ratio[0, 0, :, 0, 0].unique().numel() > 1


def test_nested_attention_takes_any_number_of_frames():
    attention = NestedAttention()
    assert attention(torch.randn(1, 12, 3, 7, 7)).shape == (1, 1, 3, 7, 7)


def test_spatial_temporal_attention_refuses_another_number_of_frames():
    with pytest.raises(HarcacheError, match="made for 16 RGB frames and got 8"):
        SpatialTemporalAttention(12, 16)(torch.randn(1, 12, 8, 7, 7))

"""Keypoints of a whole batch of heatmaps are those that mmpose finds one by one."""

import numpy as np
import pytest
import torch

from harcache.models.pretrained import mmpose_stand_ins
from harcache.models.pretrained.heatmap_decoding import finish_decoding, start_decoding

mmpose_stand_ins.install()


def make_codec(kind, **settings):
    from mmpose.registry import KEYPOINT_CODECS

    return KEYPOINT_CODECS.build(
        {"type": kind, "input_size": (96, 128), "heatmap_size": (24, 32), **settings}
    )


@pytest.mark.parametrize(
    "codec",
    [
        make_codec("UDPHeatmap", sigma=1.5, blur_kernel_size=5),
        make_codec("UDPHeatmap", sigma=2),
        make_codec("UDPHeatmap", heatmap_type="combined"),
        make_codec("MSRAHeatmap", sigma=1.5),
        make_codec("MSRAHeatmap", sigma=1.5, unbiased=True),
    ],
    ids=["udp-small", "udp", "udp-combined", "msra", "msra-dark"],
)
def test_heatmaps_are_decoded_as_mmpose_does(codec):
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(-0.02, 1.02, (8, 1, 17, 2)).astype(np.float32) * codec.input_size
    heatmaps = np.stack([codec.encode(person)["heatmaps"] for person in keypoints]).astype(np.float32)
    found, scores = finish_decoding(start_decoding(torch.from_numpy(heatmaps), codec), codec)
    expected = [codec.decode(heatmap) for heatmap in heatmaps]
    seen = scores > 0
    np.testing.assert_allclose(found[seen], np.concatenate([e[0] for e in expected])[seen], atol=1e-3)
    np.testing.assert_allclose(scores, np.concatenate([e[1] for e in expected]), atol=1e-5)


@pytest.mark.parametrize("kind", ["UDPHeatmap", "MSRAHeatmap"])
def test_a_blank_heatmap_gives_a_keypoint_without_score(kind):
    codec = make_codec(kind, sigma=1.5)
    keypoints, scores = finish_decoding(start_decoding(torch.zeros(1, 17, 32, 24), codec), codec)
    assert (scores == 0).all()
    assert np.isfinite(keypoints).all()

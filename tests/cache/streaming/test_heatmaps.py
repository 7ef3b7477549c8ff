"""Heatmaps drawn on the device: those of the cached volume, but for what float16 keypoints have lost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harcache.cache.streaming.heatmaps import draw_heatmaps
from harcache.stages import heatmap as cached

_GREY = 1 / 255


def _keypoints(rng: np.random.Generator, persons: int, frames: int = 5) -> np.ndarray:
    """(frames, persons, 17, 3) float16, some of them outside of the crop, not found or not seen."""
    points = rng.uniform(-0.1, 1.1, (frames, persons, 17, 3)).astype(np.float16)
    points[..., 2] = rng.choice([0, 5e-5, 0.3, 1.1], points[..., 2].shape)
    points[rng.random(points.shape[:3]) < 0.1, :2] = np.nan
    return points


def _cached(keypoints: np.ndarray, size: int, sigma: float) -> np.ndarray:
    points = np.moveaxis(keypoints.astype(np.float64), 1, 0)
    return cached.draw_heatmaps(points[..., :2] * size, points[..., 2], size, sigma)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 3), st.sampled_from([28, 56]), st.sampled_from([0.6, 1.5]))
def test_the_same_keypoints_give_the_maps_of_the_cached_volume(seed, persons, size, sigma):
    keypoints = _keypoints(np.random.default_rng(seed), persons)
    drawn = draw_heatmaps(torch.from_numpy(keypoints), size, sigma).numpy()
    expected = _cached(keypoints, size, sigma).clip(max=1)
    # A Gaussian's cut, at 3 sigma, may fall to either side of a pixel: e^-4.5 is 3 grey levels.
    assert np.quantile(np.abs(drawn - expected), 0.999) < 1e-5
    assert np.abs(drawn - expected).max() < 3 * _GREY


def test_float16_costs_less_than_five_grey_levels():
    rng = np.random.default_rng(0)
    exact = rng.uniform(0, 1, (200, 1, 17, 3))
    volume = np.round(_cached(exact, 56, 0.6) * 255) / 255
    drawn = draw_heatmaps(torch.from_numpy(exact.astype(np.float16)), 56, 0.6).numpy()
    assert np.abs(drawn - volume).max() < 5.5 * _GREY
    assert np.abs(drawn - volume)[volume > 0].mean() < _GREY


def test_maps_have_the_leading_dimensions_of_the_keypoints():
    maps = draw_heatmaps(torch.rand(2, 3, 4, 17, 3), 8, 0.6)
    assert (maps.shape, maps.dtype) == ((2, 3, 17, 8, 8), torch.float32)


def test_a_person_who_is_not_there_leaves_no_trace():
    maps = draw_heatmaps(torch.full((1, 17, 3), torch.nan), 8, 0.6)
    assert torch.equal(maps, torch.zeros(17, 8, 8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same():
    keypoints = torch.from_numpy(_keypoints(np.random.default_rng(0), 2))
    maps = draw_heatmaps(keypoints.cuda(), 56, 0.6).cpu()
    torch.testing.assert_close(maps, draw_heatmaps(keypoints, 56, 0.6), atol=3 * _GREY, rtol=0)

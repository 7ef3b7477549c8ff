"""Stores that the tests of a module share."""

import pytest

from tests.cache.streaming.small_stores import FRAMES, KEYPOINTS, VOLUME, write_store


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return {
        "rgb": write_store(folder / "rgb.zarr", FRAMES, 256),
        "heatmaps": write_store(folder / "heatmaps.zarr", VOLUME, 400),
    }


@pytest.fixture(scope="module")
def keypoint_store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("keypoints") / "heatmaps.zarr", KEYPOINTS, 400)

"""The loader's benchmark says how long a sample takes each way, as JSON and as lines to read."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from harcache.benchmarks import loader_rivals
from harcache.benchmarks.footage import HEATMAP_SIZE, SIGMA, make_footage
from harcache.benchmarks.loader import as_table
from harcache.cache.clip_store import open_store
from harcache.cache.streaming.heatmaps import draw_heatmaps

_WAYS = {
    *("harcache_1", "harcache_2", "harcache_loader", "released", "zarr_python", "litdata", "webdataset"),
    "limit",
}


# Loads PyTorch, LitData and WebDataset in a process of its own.
@pytest.mark.slow
def test_every_way_is_measured_and_written(tmp_path):
    command = [Path(sys.executable).with_name("harcache"), "bench", "loader"]
    options = ["--clips", "2", "--rounds", "1", "--json", "out.json"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out.json").read_text())
    found = results["ms_per_sample"]
    assert found.keys() == _WAYS
    for way, milliseconds in found.items():
        assert way in done.stdout
        missing = way in ("litdata", "webdataset") and importlib.util.find_spec(way) is None
        assert milliseconds is None if missing else milliseconds > 0
    # Far apart enough for any machine, however busy.
    assert 2 * found["harcache_1"] < found["released"] < found["zarr_python"]
    assert list(tmp_path.iterdir()) == [tmp_path / "out.json"]


def test_a_package_that_is_missing_is_named_in_one_line():
    found = dict.fromkeys(_WAYS, 2.0) | {"litdata": None}
    also = dict.fromkeys(("limit_2_processes",), 1.0)
    table = as_table({"ms_per_sample": found, "also_ms_per_sample": also, "bytes": {"rgb": 1, "heatmaps": 1}})
    assert "litdata           not installed; it comes with the extra 'bench'" in table
    assert "litdata /" not in table


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("footage")
    return folder, make_footage(folder, 2, 60)


def test_all_forms_hold_the_same_frames(filmed):
    folder, clips = filmed
    rgb, heatmaps = open_store(folder / "rgb.zarr"), open_store(folder / "heatmaps.zarr")
    for clip in clips:
        seen = loader_rivals._from_video(clip.video, np.arange(60))
        stored = (rgb.frames(clip.id) - np.array([123.675, 116.28, 103.53])) / [58.395, 57.12, 57.375]
        assert np.abs(seen - stored.transpose(3, 0, 1, 2)).mean() < 0.1
        drawn = loader_rivals._joint_by_joint(clip.keypoints).swapaxes(0, 1)
        assert np.abs(drawn - heatmaps.heatmaps(clip.id) / 255).max() < 3 / 255
        device = draw_heatmaps(torch.from_numpy(clip.keypoints), HEATMAP_SIZE, SIGMA).numpy()
        assert np.abs(drawn - device).max() < 3 / 255
        one = cv2.imdecode(np.frombuffer(clip.jpegs[7], np.uint8), cv2.IMREAD_COLOR_RGB)
        assert np.abs(one.astype(int) - rgb.frames(clip.id)[7]).max() <= 2


def test_frames_and_heatmaps_take_the_space_of_real_ones(filmed):
    _, clips = filmed
    assert 9_000 < np.mean([len(row) for clip in clips for row in clip.jpegs]) < 13_000
    assert 400 < np.mean([len(row) for clip in clips for row in clip.heatmaps]) < 850

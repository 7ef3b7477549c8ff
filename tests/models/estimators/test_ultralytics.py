"""Ultralytics' pose networks find persons by themselves, of whom each box gets one."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from harcache.models.estimators.registry import load_pose_estimator
from harcache.models.estimators.ultralytics import _matched
from harcache.models.pretrained import ultralytics_files
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import PoseParams
from tests.models.extraction import estimate, make_frames

PARAMS = PoseParams(
    backend="ultralytics",
    config="",
    weights="net.pth",
    flip_test=False,
    max_persons=2,
    precision="float32",
)
NOBODY = np.empty((0, 4), np.float32)


@pytest.fixture(scope="module")
def yolo_pose(tmp_path_factory):
    if find_spec("ultralytics") is None:
        pytest.skip("the optional package ultralytics is not installed")
    ultralytics_files.prepare_ultralytics()
    from ultralytics.nn.tasks import PoseModel

    torch.manual_seed(0)
    model = PoseModel("yolov8n-pose.yaml", verbose=False)
    model.names = {0: "person"}
    for branch in model.model[-1].cv3:
        torch.nn.init.constant_(branch[-1].bias, 2)
    folder = tmp_path_factory.mktemp("yolo-pose")
    torch.save({"model": model.half(), "train_args": {"imgsz": 128}}, folder / "net.pth.pt")
    return folder


def test_each_box_has_keypoints(yolo_pose):
    frames = make_frames(2)
    whole = np.array([[0, 0, 160, 120]], np.float32)
    one, two = estimate(load_pose_estimator(PARAMS, yolo_pose), frames, [whole, NOBODY])
    assert one.shape == (1, 17, 3)
    assert np.isfinite(one).all()
    assert two.shape == (0, 17, 3)


def test_a_flip_test_is_refused(yolo_pose):
    with pytest.raises(HarcacheError, match="has no flip test"):
        load_pose_estimator(replace(PARAMS, flip_test=True), yolo_pose)


def test_each_box_gets_the_person_that_overlaps_it_most_and_no_person_twice():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60]], np.float32)
    predicted = np.zeros((2, 5 + 51), np.float32)
    predicted[:, :4] = [[1, 1, 11, 11], [0, 0, 10, 9]]
    predicted[:, 5:] = [[1], [2]]
    keypoints = _matched(boxes, predicted)
    assert (keypoints[0] == 2).all()
    assert (keypoints[1] == 1).all()
    assert np.isnan(keypoints[2, :, :2]).all()
    assert (keypoints[2, :, 2] == 0).all()

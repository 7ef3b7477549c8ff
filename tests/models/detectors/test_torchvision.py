"""Faster R-CNN finds boxes in the frame, and refuses weights of other networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from harcache.models.detectors.registry import load_detector
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import DetectParams
from tests.models.extraction import detect, make_frames

PARAMS = DetectParams(
    backend="torchvision",
    weights="net.pt",
    image_size=128,
    score=0.3,
    nms_iou=0.5,
    max_persons=4,
    precision="float32",
)


@pytest.fixture(scope="module")
def rcnn_weights(tmp_path_factory):
    from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn_v2(weights_backbone=None)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.1)
    folder = tmp_path_factory.mktemp("rcnn")
    torch.save(model.state_dict(), folder / "net.pt")
    return folder


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_faster_rcnn_finds_boxes_in_the_frame(rcnn_weights, precision):
    params = replace(PARAMS, score=0.0, image_size=64, precision=precision)
    detector = load_detector(params, rcnn_weights)
    found = detect(detector, make_frames(2))
    assert len(found) == 2
    for boxes in found:
        assert boxes.dtype == np.float32
        assert boxes.shape[1] == 5
        assert len(boxes) <= 4
        assert (boxes[:, 2:4] <= (160, 120)).all()
        assert (np.diff(boxes[:, 4]) <= 0).all()


def test_faster_rcnn_says_when_weights_are_another_networks(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "net.pt")
    with pytest.raises(HarcacheError, match="not the weights of fasterrcnn_resnet50_fpn_v2"):
        load_detector(PARAMS, tmp_path)

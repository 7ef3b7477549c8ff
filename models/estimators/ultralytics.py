"""Ultralytics' pose networks, which are light: they see whole frames, and find persons by themselves."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from harcache.models.pretrained.network import Finish, Image, Network
from harcache.models.pretrained.person_crops import check_boxes
from harcache.models.pretrained.weight_files import find_weights
from harcache.models.pretrained.yolo import YoloNetwork
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import PoseParams

__all__ = ["load"]

_KEYPOINTS = 17

# A network that finds its own persons should find many; the boxes given decide which of them count.
_SCORE = 0.05
_NMS_IOU = 0.7
_PERSONS = 100
_SAME_PERSON_IOU = 0.3


def load(params: PoseParams, weights_dir: Path | None, device: str) -> Network:
    """Load the network of the weights that ``params`` name."""
    return _YoloPose(params, find_weights(params.weights, weights_dir), device)


class _YoloPose:
    """An Ultralytics pose network: it sees whole frames, and its persons are matched to the given boxes."""

    def __init__(self, params: PoseParams, weights: Path, device: str) -> None:
        if params.flip_test:
            raise HarcacheError("pose backend 'ultralytics' has no flip test; set flip_test to false")
        self._network = YoloNetwork(
            weights,
            None,
            params.precision,
            device,
            score=_SCORE,
            nms_iou=_NMS_IOU,
            limit=_PERSONS,
        )
        self.batch, self.memory = self._network.batch, self._network.memory
        if self._network.keypoint_shape is None or tuple(self._network.keypoint_shape) != (_KEYPOINTS, 3):
            raise HarcacheError(
                f"{weights}: finds no 17 keypoints with scores; use pose weights such as 'yolo11n-pose.pt'"
            )

    def prepare(self, frame: np.ndarray, boxes: np.ndarray) -> list[Image]:
        check_boxes(boxes)
        image = self._network.prepare(frame)
        return [replace(image, place=(image.place, boxes))] if len(boxes) else []

    def start(self, pixels: np.ndarray, images: Sequence[Image]) -> Finish:
        finish = self._network.start(pixels, [image.place[0] for image in images])

        def matched() -> tuple[Sequence[np.ndarray | HarcacheError], float]:
            found, seconds = finish()
            return [
                one if isinstance(one, HarcacheError) else _matched(image.place[1], one)
                for one, image in zip(found, images, strict=True)
            ], seconds

        return matched


def _matched(boxes: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Give every box the predicted person that overlaps it most, each person to one box at most."""
    # These take as long to import as PyTorch, which mmpose's networks need not wait for.
    from scipy.optimize import linear_sum_assignment
    from torchvision.ops import box_iou

    keypoints = np.full((len(boxes), _KEYPOINTS, 3), np.nan, np.float32)
    keypoints[..., 2] = 0
    given = torch.from_numpy(np.asarray(boxes, np.float32)[:, :4])
    overlaps = box_iou(given, torch.from_numpy(predicted[:, :4])).numpy()
    for box, person in zip(*linear_sum_assignment(overlaps, maximize=True), strict=True):
        if overlaps[box, person] >= _SAME_PERSON_IOU:
            keypoints[box] = predicted[person, 5:].reshape(_KEYPOINTS, 3)
    return keypoints

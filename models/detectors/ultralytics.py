"""Ultralytics' YOLO as a person detector."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harcache.models.pretrained.network import Finish, Image, Network
from harcache.models.pretrained.weight_files import find_weights
from harcache.models.pretrained.yolo import YoloNetwork
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import DetectParams

__all__ = ["load"]


def load(params: DetectParams, weights_dir: Path | None, device: str) -> Network:
    """Load the network of the weights that ``params`` name."""
    return _Yolo(params, find_weights(params.weights, weights_dir), device)


class _Yolo:
    def __init__(self, params: DetectParams, path: Path, device: str) -> None:
        self._network = YoloNetwork(
            path,
            params.image_size,
            params.precision,
            device,
            score=params.score,
            nms_iou=params.nms_iou,
            limit=params.max_persons,
        )
        self.batch, self.memory = self._network.batch, self._network.memory

    def prepare(self, frame: np.ndarray, boxes: np.ndarray) -> list[Image]:
        return [self._network.prepare(frame)]

    def start(self, pixels: np.ndarray, images: Sequence[Image]) -> Finish:
        finish = self._network.start(pixels, [image.place for image in images])

        def boxes() -> tuple[Sequence[np.ndarray | HarcacheError], float]:
            found, seconds = finish()
            return [one if isinstance(one, HarcacheError) else one[:, :5] for one in found], seconds

        return boxes

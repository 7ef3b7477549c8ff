"""Person detectors behind one method: Ultralytics' YOLO, or torchvision's Faster R-CNN, the paper's choice.

Frames go through the bare networks in batches; what the rest of the program sees is boxes in frame pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from models.inference import repeatable, run_in
from models.weights import find_weights, load_tensors
from models.yolo import YoloNetwork
from pipeline.errors import HarcacheError
from pipeline.params import DetectParams

__all__ = ["Detector", "load_detector"]

_COCO_PERSON = 1  # torchvision counts classes from 1; 0 is the background
_RCNN_BATCH = 4


class Detector(Protocol):
    """Finds persons in frames."""

    def detect(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Find the persons in (H, W, 3) uint8 RGB frames.

        Returns:
            A frame's (n, 5) float32, x1 y1 x2 y2 score, in pixels within the frame, best score first.
        """
        ...


def load_detector(params: DetectParams, weights_dir: Path | None = None, device: str = "cpu") -> Detector:
    """Load the detector that ``params`` name.

    Raises:
        HarcacheError: the backend's package or the weights are missing, or the weights don't fit.
    """
    path = find_weights(params.weights, weights_dir)
    if params.backend == "torchvision":
        return _FasterRcnn(params, path, device)
    return _Yolo(params, path, device)


class _Yolo:
    def __init__(self, params: DetectParams, path: Path, device: str) -> None:
        self._params = params
        self._network = YoloNetwork(path, params.image_size, params.precision, device)

    def detect(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        params = self._params
        persons = self._network.predict(frames, params.score, params.nms_iou, params.max_persons)
        return [person[:, :5] for person in persons]


class _FasterRcnn:
    """Faster R-CNN with ResNet-50 and FPN (https://arxiv.org/abs/2111.11429), COCO's 91 classes."""

    def __init__(self, params: DetectParams, path: Path, device: str) -> None:
        from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

        size = params.image_size
        model = fasterrcnn_resnet50_fpn_v2(
            weights_backbone=None,
            min_size=size,
            max_size=size,
            box_score_thresh=params.score,
            box_nms_thresh=params.nms_iou,
        )
        try:
            model.load_state_dict(load_tensors(path))
        except RuntimeError as error:
            raise HarcacheError(
                f"{path}: not the weights of fasterrcnn_resnet50_fpn_v2; use those"
            ) from error
        model.eval()
        run_in(params.precision, model.backbone)
        for part in (model.rpn, model.roi_heads):
            run_in("float32", part)
        self._network = model.to(device, memory_format=torch.channels_last)
        self._params = params
        self._device = device

    def detect(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for first in range(0, len(frames), _RCNN_BATCH):
            batch = list(frames[first : first + _RCNN_BATCH])
            blank = [np.zeros_like(batch[0])] * (_RCNN_BATCH - len(batch))
            with repeatable(self._params.precision):
                images = [torch.from_numpy(frame).to(self._device) for frame in batch + blank]
                results = self._network([image.permute(2, 0, 1).float() / 255 for image in images])
            found += [self._persons(result) for result in results[: len(batch)]]
        return found

    def _persons(self, result: dict[str, torch.Tensor]) -> np.ndarray:
        """The network gives boxes cut at the frame's border, best score first."""
        rows = torch.cat([result["boxes"], result["scores"][:, None]], dim=1)
        return rows[result["labels"] == _COCO_PERSON][: self._params.max_persons].cpu().numpy()

"""Person detectors: Ultralytics' YOLO, or torchvision's Faster R-CNN, the paper's choice.

Frames go through the bare networks in batches; what the rest of the program sees is boxes in frame pixels.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from harcache.models.pretrained.batching import Finish, Image, Network
from harcache.models.pretrained.inference import repeatable, run_in
from harcache.models.pretrained.weight_files import find_weights, load_tensors
from harcache.models.pretrained.yolo import YoloNetwork
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import DetectParams

__all__ = ["load_detector"]

_COCO_PERSON = 1  # torchvision counts classes from 1; 0 is the background


def load_detector(params: DetectParams, weights_dir: Path | None = None, device: str = "cpu") -> Network:
    """Load the detector that ``params`` name.

    It makes one image of a frame, whose result is (n, 5) float32, x1 y1 x2 y2 score, in pixels within the
    frame, best score first.

    Raises:
        HarcacheError: the backend's package or the weights are missing, or the weights don't fit.
    """
    path = find_weights(params.weights, weights_dir)
    if params.backend == "torchvision":
        return _FasterRcnn(params, path, device)
    return _Yolo(params, path, device)


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


class _FasterRcnn:
    """Faster R-CNN with ResNet-50 and FPN (https://arxiv.org/abs/2111.11429), COCO's 91 classes."""

    batch = 4

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

    def memory(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.empty((self.batch, *shape), np.uint8)

    def prepare(self, frame: np.ndarray, boxes: np.ndarray) -> list[Image]:
        return [Image(frame.shape, partial(np.copyto, src=frame), None)]

    def start(self, pixels: np.ndarray, images: Sequence[Image]) -> Finish:
        """Find the persons at once: how many there are decides what comes next, so a device is waited for."""
        begun = perf_counter()
        pixels[len(images) :] = 0
        with repeatable(self._params.precision):
            frames = torch.from_numpy(pixels).to(self._device)
            results = self._network([frame.permute(2, 0, 1).float() / 255 for frame in frames])
            found = [self._persons(result) for result in results[: len(images)]]
        seconds = perf_counter() - begun
        return lambda: (found, seconds)

    def _persons(self, result: dict[str, torch.Tensor]) -> np.ndarray:
        """The network gives boxes cut at the frame's border, best score first."""
        rows = torch.cat([result["boxes"], result["scores"][:, None]], dim=1)
        return rows[result["labels"] == _COCO_PERSON][: self._params.max_persons].cpu().numpy()

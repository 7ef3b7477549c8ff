"""torchvision's Faster R-CNN as a person detector, the choice of EPAM-Net's paper."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from harcache.models.pretrained.network import Finish, Image, Network
from harcache.models.pretrained.number_format import repeatable, run_in
from harcache.models.pretrained.weight_files import find_weights, load_tensors
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import DetectParams

__all__ = ["load"]

_COCO_PERSON = 1  # torchvision counts classes from 1; 0 is the background


def load(params: DetectParams, weights_dir: Path | None, device: str) -> Network:
    """Load the network of the weights that ``params`` name."""
    return _FasterRcnn(params, find_weights(params.weights, weights_dir), device)


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

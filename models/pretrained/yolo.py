"""Ultralytics' YOLO networks as plain functions of many frames, without their predictor around them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from harcache.models.pretrained.batch_runner import BatchRunner
from harcache.models.pretrained.cpu_convolutions import speed_up_convolutions
from harcache.models.pretrained.letterbox import Letterbox
from harcache.models.pretrained.network import Finish, Image
from harcache.models.pretrained.number_format import not_finite, run_in
from harcache.models.pretrained.ultralytics_files import load_yolo, person_class, prepare_ultralytics
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import Precision

__all__ = ["YoloNetwork"]

_CPU_BATCH, _GPU_BATCH = 4, 32  # frames; more at a time leave a CPU's cache
_CANDIDATES = 4096  # a frame; the best of some ten thousand, far more than persons are


class YoloNetwork:
    """A YOLO detector or pose network on one device, as a `Network` takes and gives frames.

    Args:
        path: an Ultralytics checkpoint (.pt), or a file that ``save_yolo`` wrote.
        image_size: pixels of the longer side of the network's input; None: as it was trained.
        precision: number format of the layers before the head, which is float32.
        score: the lowest score of a person, 0 to 1.
        nms_iou: of two boxes that overlap more than this, the better one is kept.
        limit: the most persons a frame.

    Raises:
        HarcacheError: Ultralytics is not installed, or the file is damaged, foreign or knows no persons.
    """

    def __init__(
        self,
        path: Path,
        image_size: int | None,
        precision: Precision,
        device: str,
        *,
        score: float,
        nms_iou: float,
        limit: int,
    ) -> None:
        prepare_ultralytics()
        model, names, trained_size = load_yolo(path)
        self.batch = _CPU_BATCH if device == "cpu" else _GPU_BATCH
        self._score, self._nms_iou, self._limit = score, nms_iou, limit
        self._error = not_finite(path.name, precision)
        self._image_size = image_size or trained_size
        self._stride = int(model.stride.max())
        self._person = person_class(names, path)
        self._classes = len(names)
        head = model.model[-1]
        self.keypoint_shape: tuple[int, int] | None = getattr(head, "kpt_shape", None)
        # Where a network has a branch without NMS as well, the other one is used, so that all are alike.
        head.end2end = False
        model.eval().fuse(verbose=False)
        for layer in model.model[:-1]:
            run_in(precision, layer)
        run_in("float32", head)
        speed_up_convolutions(model, device)
        self._network = model.to(device, memory_format=torch.channels_last)
        self._anchors: dict[torch.Size, tuple[Tensor, Tensor]] = {}
        self._runner = BatchRunner(self._run, self._best, self.batch, precision, device)
        self.memory = self._runner.memory

    def prepare(self, frame: np.ndarray) -> Image:
        """Scale a frame, (H, W, 3) uint8 RGB, into the network's input."""
        letterbox = Letterbox.fit(frame.shape[:2], self._image_size, self._stride)
        shape = (letterbox.input_height, letterbox.input_width, 3)
        return Image(shape, partial(letterbox.draw, frame), letterbox)

    def start(self, pixels: np.ndarray, places: "Sequence[Letterbox]") -> Finish:
        """Start to find the persons in frames that were drawn into ``pixels``.

        Each one's result is (n, 5 + 3 K) float32, best score first: x1 y1 x2 y2 in pixels within the frame,
        score, then x y score of K keypoints (none for a detector).
        """
        outputs = self._runner.start(pixels, len(places))

        def finish() -> tuple[Sequence[np.ndarray | HarcacheError], float]:
            (rows, counts, finite), seconds = outputs()
            found = zip(rows.numpy(), counts.tolist(), finite.tolist(), places, strict=True)
            return [
                self._persons(candidates[:count], place) if sound else self._error
                for candidates, count, sound, place in found
            ], seconds

        return finish

    def _run(self, images: Tensor) -> Tensor:
        """(B, h, w, 3) uint8 → (B, 4 + classes + 3 K, anchors) float32."""
        output = self._network(images.permute(0, 3, 1, 2).float() / 255)[0].float()
        # The head makes new ones for another shape, but what a GPU has recorded reads those it was made with.
        head = self._network.model[-1]
        self._anchors[images.shape] = head.anchors, head.strides
        return output

    def _best(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best candidates, (B, n, 5 + 3 K), how many have the score, and if all are numbers."""
        scores, best = output[:, 4 + self._person].sort(dim=1, descending=True, stable=True)
        scores, best = scores[:, :_CANDIDATES], best[:, :_CANDIDATES]
        x, y, width, height = output[:, :4].gather(2, best[:, None].expand(-1, 4, -1)).unbind(1)
        corners = [x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height]
        keypoints = output[:, 4 + self._classes :]
        keypoints = keypoints.gather(2, best[:, None].expand(-1, keypoints.shape[1], -1))
        rows = torch.cat([torch.stack([*corners, scores], dim=-1), keypoints.transpose(1, 2)], dim=2)
        return rows, (scores >= self._score).sum(1), output.isfinite().flatten(1).all(1)

    def _persons(self, candidates: np.ndarray, letterbox: "Letterbox") -> np.ndarray:
        return letterbox.undo(_suppress(candidates, self._nms_iou))[: self._limit]


def _suppress(rows: np.ndarray, nms_iou: float) -> np.ndarray:
    """Non-maximum suppression: (n, 5 or more), x1 y1 x2 y2 score, to those rows that are kept, best first.

    By OpenCV: torchvision, which does the same, takes as long to import as PyTorch and 150 MB.
    """
    boxes = rows[:, :4].astype(np.float64)  # in which sides are exact
    boxes[:, 2:] -= boxes[:, :2]
    return rows[list(cv2.dnn.NMSBoxes(boxes.tolist(), rows[:, 4].tolist(), 0.0, nms_iou))]

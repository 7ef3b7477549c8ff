"""Ultralytics' YOLO networks as plain functions of many frames, without their predictor around them.

Their checkpoints are pickles of whole modules; they are loaded by an allow-list of network classes, so that
a hostile file can't run code. Settings, telemetry, installs and downloads of the library are switched off.
"""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from harcache.models.pretrained.batching import Finish, Image
from harcache.models.pretrained.inference import BatchRunner, not_finite, quicken, run_in
from harcache.models.pretrained.weight_files import load_tensors
from harcache.pipeline.base.errors import HarcacheError, refuse_newer
from harcache.pipeline.base.layers import load
from harcache.pipeline.params import Precision

__all__ = ["YoloNetwork", "prepare_ultralytics", "save_yolo"]

_FORMAT = "harcache-yolo-1"
# The library calls whatever function a model's description names, so a file may name only these.
_LAYERS = {"Conv", "C2f", "SPPF", "Concat", "Detect", "Pose", "nn.Upsample"}
_CPU_BATCH, _GPU_BATCH = 4, 32  # frames; more at a time leave a CPU's cache
_CANDIDATES = 4096  # a frame; the best of some ten thousand, far more than persons are
_GREY = 114  # what Ultralytics fills the border with, in training too


def save_yolo(model: Any, names: Mapping[int, str], path: Path) -> None:
    """Save an Ultralytics ``DetectionModel`` as float16 tensors and plain values, without pickled code."""
    state = model.state_dict()
    state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"format": _FORMAT, "yaml": model.yaml, "names": dict(names), "state_dict": state}, path)


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
        model, names, trained_size = _load(path)
        self.batch = _CPU_BATCH if device == "cpu" else _GPU_BATCH
        self._score, self._nms_iou, self._limit = score, nms_iou, limit
        self._error = not_finite(path.name, precision)
        self._image_size = image_size or trained_size
        self._stride = int(model.stride.max())
        self._person = _person_class(names, path)
        self._classes = len(names)
        head = model.model[-1]
        self.keypoint_shape: tuple[int, int] | None = getattr(head, "kpt_shape", None)
        # Where a network has a branch without NMS as well, the other one is used, so that all are alike.
        head.end2end = False
        model.eval().fuse(verbose=False)
        for layer in model.model[:-1]:
            run_in(precision, layer)
        run_in("float32", head)
        quicken(model, device)
        self._network = model.to(device, memory_format=torch.channels_last)
        self._anchors: dict[torch.Size, tuple[Tensor, Tensor]] = {}
        self._runner = BatchRunner(self._run, self._best, self.batch, precision, device)
        self.memory = self._runner.memory

    def prepare(self, frame: np.ndarray) -> Image:
        """Scale a frame, (H, W, 3) uint8 RGB, into the network's input."""
        letterbox = _Letterbox.fit(frame.shape[:2], self._image_size, self._stride)
        shape = (letterbox.input_height, letterbox.input_width, 3)
        return Image(shape, partial(letterbox.draw, frame), letterbox)

    def start(self, pixels: np.ndarray, places: "Sequence[_Letterbox]") -> Finish:
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

    def _persons(self, candidates: np.ndarray, letterbox: "_Letterbox") -> np.ndarray:
        return letterbox.undo(_suppress(candidates, self._nms_iou))[: self._limit]


def _suppress(rows: np.ndarray, nms_iou: float) -> np.ndarray:
    """Non-maximum suppression: (n, 5 or more), x1 y1 x2 y2 score, to those rows that are kept, best first.

    By OpenCV: torchvision, which does the same, takes as long to import as PyTorch and 150 MB.
    """
    boxes = rows[:, :4].astype(np.float64)  # in which sides are exact
    boxes[:, 2:] -= boxes[:, :2]
    return rows[list(cv2.dnn.NMSBoxes(boxes.tolist(), rows[:, 4].tolist(), 0.0, nms_iou))]


@dataclass(frozen=True)
class _Letterbox:
    """Where a frame lies in the network's input: scaled to (height, width), at (left, top), amid grey."""

    frame_height: int
    frame_width: int
    height: int
    width: int
    top: int
    left: int
    input_height: int
    input_width: int

    @classmethod
    def fit(cls, frame_size: tuple[int, int], image_size: int, stride: int) -> "_Letterbox":
        frame_height, frame_width = frame_size
        scale = image_size / max(frame_size)
        height, width = (max(1, round(side * scale)) for side in frame_size)
        border_y, border_x = -height % stride, -width % stride
        return cls(
            frame_height=frame_height,
            frame_width=frame_width,
            height=height,
            width=width,
            top=border_y // 2,
            left=border_x // 2,
            input_height=height + border_y,
            input_width=width + border_x,
        )

    def draw(self, frame: np.ndarray, image: np.ndarray) -> None:
        """Draw the frame into ``image``, (input_height, input_width, 3) uint8."""
        image[:] = _GREY
        inside = image[self.top : self.top + self.height, self.left : self.left + self.width]
        cv2.resize(frame, (self.width, self.height), dst=inside, interpolation=cv2.INTER_LINEAR)

    def undo(self, persons: np.ndarray) -> np.ndarray:
        """Bring boxes and keypoints into the frame's pixels, in place; boxes are cut at its border."""
        scale_x, scale_y = self.frame_width / self.width, self.frame_height / self.height
        for x in [0, 2, *range(5, persons.shape[1], 3)]:
            persons[:, x] = (persons[:, x] - self.left) * scale_x
            persons[:, x + 1] = (persons[:, x + 1] - self.top) * scale_y
        persons[:, 0:4:2] = persons[:, 0:4:2].clip(0, self.frame_width)
        persons[:, 1:4:2] = persons[:, 1:4:2].clip(0, self.frame_height)
        return persons[(persons[:, 2] > persons[:, 0]) & (persons[:, 3] > persons[:, 1])]


def prepare_ultralytics() -> None:
    """Import Ultralytics without its telemetry, installs, downloads and settings in the home folder."""
    if "ultralytics" in sys.modules:
        return
    # A folder a process: workers that start together would otherwise write one settings file at once.
    settings = tempfile.mkdtemp(prefix="harcache-ultralytics-")
    atexit.register(shutil.rmtree, settings, ignore_errors=True)
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false")
    users = os.environ.get("YOLO_CONFIG_DIR")
    os.environ["YOLO_CONFIG_DIR"] = users or settings
    try:
        load("ultralytics")
    finally:
        if users is None:  # the folder is this process's alone, so its children must not inherit it
            del os.environ["YOLO_CONFIG_DIR"]


def _load(path: Path) -> tuple[Any, dict[int, str], int]:
    """Return the network, its class names and the image size it was trained with."""
    try:
        saved = load_tensors(path)
    except HarcacheError:
        saved = {}
    refuse_newer(saved.get("format"), _FORMAT, path)
    return _load_saved(saved, path) if saved.get("format") == _FORMAT else _load_ultralytics(path)


def _load_saved(saved: Mapping[str, Any], path: Path) -> tuple[Any, dict[int, str], int]:
    from ultralytics.nn.tasks import DetectionModel

    description = dict(saved["yaml"])
    unknown = {layer[2] for part in ("backbone", "head") for layer in description[part]} - _LAYERS
    if unknown or "activation" in description:
        what = ", ".join(sorted(unknown)) or "an activation"
        raise HarcacheError(
            f"{path}: its description names {what}, expected only {', '.join(sorted(_LAYERS))}"
        )
    model = DetectionModel(description, verbose=False)
    try:
        model.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        raise HarcacheError(
            f"{path}: its tensors don't fit its description; save it again by save_yolo"
        ) from error
    return model.float(), dict(saved["names"]), 640


def _load_ultralytics(path: Path) -> tuple[Any, dict[int, str], int]:
    from ultralytics.nn.tasks import torch_safe_load

    try:
        checkpoint, _ = torch_safe_load(str(path), safe_only=True)
        model = (checkpoint.get("ema") or checkpoint["model"]).float()
    except Exception as error:  # a damaged or foreign file shows itself in many ways
        raise HarcacheError(
            f"{path}: not a checkpoint that Ultralytics can load safely "
            f"({type(error).__name__}: {' '.join(str(error).split())}); fetch it again, or update ultralytics"
        ) from error
    return model, dict(model.names), int(checkpoint.get("train_args", {}).get("imgsz", 640))


def _person_class(names: Mapping[int, str], path: Path) -> int:
    if len(names) == 1:
        return next(iter(names))
    for number, name in names.items():
        if name == "person":
            return number
    known = ", ".join(names.values())
    raise HarcacheError(f"{path}: knows no class 'person', only {known}; use weights that find persons")

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
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, nms

from models.inference import batch_size, check_finite, repeatable, run_in
from models.weights import load_tensors
from pipeline.errors import HarcacheError
from pipeline.params import Precision

__all__ = ["YoloNetwork", "prepare_ultralytics", "save_yolo"]

_FORMAT = "harcache-yolo-1"
# The library calls whatever function a model's description names, so a file may name only these.
_LAYERS = {"Conv", "C2f", "SPPF", "Concat", "Detect", "Pose", "nn.Upsample"}
_GREY = 114  # what Ultralytics fills the border with, in training too


def save_yolo(model: Any, names: Mapping[int, str], path: Path) -> None:
    """Save an Ultralytics ``DetectionModel`` as float16 tensors and plain values, without pickled code."""
    state = model.state_dict()
    state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"format": _FORMAT, "yaml": model.yaml, "names": dict(names), "state_dict": state}, path)


class YoloNetwork:
    """A YOLO detector or pose network on one device.

    Args:
        path: an Ultralytics checkpoint (.pt), or a file that ``save_yolo`` wrote.
        image_size: pixels of the longer side of the network's input; None: as it was trained.
        precision: number format of the layers before the head, which is float32.

    Raises:
        HarcacheError: Ultralytics is not installed, or the file is damaged, foreign or knows no persons.
    """

    def __init__(self, path: Path, image_size: int | None, precision: Precision, device: str) -> None:
        prepare_ultralytics()
        model, names, trained_size = _load(path)
        self._name = path.name
        self._precision: Precision = precision
        self._device = device
        self._batch = batch_size(device)
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
        self._network = model.to(device, memory_format=torch.channels_last)

    def predict(
        self, frames: Sequence[np.ndarray], score: float, nms_iou: float, limit: int
    ) -> list[np.ndarray]:
        """Find the persons in frames.

        Args:
            frames: (H, W, 3) uint8 RGB.
            score: the lowest score, 0 to 1.
            nms_iou: of two boxes that overlap more than this, the better one is kept.
            limit: the most persons a frame.

        Returns:
            A frame's (n, 5 + 3 K) float32, best score first: x1 y1 x2 y2 in pixels within the frame, score,
            then x y score of K keypoints (none for a detector).
        """
        found: list[np.ndarray] = []
        for _, group in groupby(frames, key=np.shape):
            alike = list(group)
            for first in range(0, len(alike), self._batch):
                batch = alike[first : first + self._batch]
                letterbox = _Letterbox.fit(batch[0].shape[:2], self._image_size, self._stride)
                for candidates in self._run(letterbox.images(batch, self._batch))[: len(batch)]:
                    persons = self._persons(candidates, score, nms_iou)
                    found.append(letterbox.undo(persons)[:limit])
        return found

    def _run(self, images: np.ndarray) -> Tensor:
        """(B, h, w, 3) uint8 → (B, anchors, 4 + classes + 3 K) float32, on the CPU."""
        with repeatable(self._precision):
            pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float() / 255
            output = self._network(pixels)[0].float().cpu()
        check_finite(output, self._name, self._precision)
        return output.transpose(1, 2)

    def _persons(self, candidates: Tensor, score: float, nms_iou: float) -> np.ndarray:
        candidates = candidates[candidates[:, 4 + self._person] >= score]
        boxes = box_convert(candidates[:, :4], "cxcywh", "xyxy")
        scores = candidates[:, 4 + self._person]
        keypoints = candidates[:, 4 + self._classes :]
        kept = nms(boxes, scores, nms_iou)
        return torch.cat([boxes, scores[:, None], keypoints], dim=1)[kept].numpy()


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

    def images(self, frames: Sequence[np.ndarray], size: int) -> np.ndarray:
        """Return a batch of ``size``, (B, input_height, input_width, 3) uint8, blank after the frames."""
        images = np.full((size, self.input_height, self.input_width, 3), _GREY, np.uint8)
        inside = images[:, self.top : self.top + self.height, self.left : self.left + self.width]
        for image, frame in zip(inside, frames, strict=False):
            image[:] = cv2.resize(frame, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        return images

    def undo(self, persons: np.ndarray) -> np.ndarray:
        """Bring boxes and keypoints into the frame's pixels; boxes are cut at its border, empty ones go."""
        persons = persons.astype(np.float32)
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
        import ultralytics  # noqa: F401
    except ImportError as error:
        raise HarcacheError(
            "backend 'ultralytics' needs the package ultralytics, which is not installed; "
            "install harcache with its extra 'yolo', or use another backend"
        ) from error
    finally:
        if users is None:  # the folder is this process's alone, so its children must not inherit it
            del os.environ["YOLO_CONFIG_DIR"]


def _load(path: Path) -> tuple[Any, dict[int, str], int]:
    """Return the network, its class names and the image size it was trained with."""
    try:
        saved = load_tensors(path)
    except HarcacheError:
        saved = {}
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

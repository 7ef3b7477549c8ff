"""Pose estimators behind one method: mmpose's top-down heatmap networks, or Ultralytics' light ones.

mmpose's own inference runs one frame at a time and decodes keypoint by keypoint; here the persons of many
frames share a batch, and a whole batch is decoded at once. In float32 the results are mmpose's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou

from models import mmcv_stub
from models.inference import batch_size, check_finite, repeatable, run_in
from models.weights import find_config, find_weights, load_tensors
from models.yolo import YoloNetwork
from pipeline.errors import HarcacheError
from pipeline.keypoints import COCO_MIRRORED
from pipeline.params import PoseParams

__all__ = ["PoseEstimator", "load_pose_estimator"]

_KEYPOINTS = 17
# COCO's keypoints with left and right exchanged.

# A network that finds its own persons should find many; the boxes given decide which of them count.
_YOLO_SCORE = 0.05
_YOLO_NMS_IOU = 0.7
_YOLO_PERSONS = 100
_SAME_PERSON_IOU = 0.3


class PoseEstimator(Protocol):
    """Finds the keypoints of given persons."""

    def estimate(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Find COCO's 17 keypoints of every box.

        Args:
            frames: (H, W, 3) uint8 RGB.
            boxes: a frame's (n, 4 or more), x1 y1 x2 y2 first, pixels of the frame.

        Returns:
            A frame's (n, 17, 3) float32, x y score, pixels of the frame; x and y are NaN, the score 0,
            where the estimator found no person in a box.

        Raises:
            HarcacheError: a box is empty or not finite.
        """
        ...


def load_pose_estimator(
    params: PoseParams, weights_dir: Path | None = None, device: str = "cpu"
) -> PoseEstimator:
    """Load the pose estimator that ``params`` name.

    Raises:
        HarcacheError: the package, config or weights are missing, or they don't fit together.
    """
    if params.backend == "ultralytics":
        return _YoloPose(params, find_weights(params.weights, weights_dir), device)
    return _TopDown(params, find_config(params.config), find_weights(params.weights, weights_dir), device)


@dataclass(frozen=True)
class _Crop:
    """One person's place in the results, and the region of the frame that the network saw."""

    frame: int
    person: int
    image: np.ndarray  # (h, w, 3) uint8
    center: np.ndarray  # x y, pixels of the frame
    scale: np.ndarray  # width height, pixels of the frame


class _TopDown:
    """A heatmap network of mmpose: crop by the config's transforms, mean with the mirrored crop, decode."""

    def __init__(self, params: PoseParams, config_path: Path, weights: Path, device: str) -> None:
        self._config = _read_config(config_path)
        self._transforms = _transforms(self._config, config_path)
        self._precision = params.precision
        self._flip_test = params.flip_test
        self._device = device
        self._batch = batch_size(device)
        self._name = weights.name
        self._model = _build(self._config, config_path)
        self._codec = self._model.head.decoder
        _load_state(self._model, weights)
        self._model.backbone = _fused(self._model.backbone)
        run_in(self._precision, self._model.backbone)
        run_in("float32", self._model.head)
        self._model.to(device, memory_format=torch.channels_last)

    def estimate(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = [np.empty((len(persons), _KEYPOINTS, 3), np.float32) for persons in boxes]
        batch: list[_Crop] = []
        for crop in self._crops(frames, boxes):
            batch.append(crop)
            if len(batch) == self._batch:
                self._estimate_batch(batch, found)
                batch = []
        if batch:
            self._estimate_batch(batch, found)
        return found

    def _crops(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> Iterator[_Crop]:
        for i, (frame, persons) in enumerate(zip(frames, boxes, strict=True)):
            _check_boxes(persons, i)
            for j, box in enumerate(persons):
                sample = {"img": frame, "bbox": np.asarray(box[None, :4], np.float32)}
                for transform in self._transforms:
                    sample = transform(sample)
                yield _Crop(i, j, sample["img"], sample["input_center"], sample["input_scale"])

    def _estimate_batch(self, crops: Sequence[_Crop], found: list[np.ndarray]) -> None:
        images = np.zeros((self._batch, *crops[0].image.shape), np.uint8)
        images[: len(crops)] = [crop.image for crop in crops]
        with repeatable(self._precision):
            heatmaps = self._heatmaps(torch.from_numpy(images).to(self._device))[: len(crops)]
            check_finite(heatmaps, self._name, self._precision)
            keypoints, scores = _decode(heatmaps, self._codec)
        scale = np.stack([crop.scale for crop in crops])[:, None]
        corner = np.stack([crop.center for crop in crops])[:, None] - 0.5 * scale
        keypoints = keypoints / np.array(self._codec.input_size) * scale + corner
        for crop, points, score in zip(crops, keypoints, scores, strict=True):
            found[crop.frame][crop.person] = np.column_stack([points, score])

    def _heatmaps(self, images: Tensor) -> Tensor:
        """(B, h, w, 3) uint8 RGB → (B, 17, H, W) float32."""
        preprocessor = self._model.data_preprocessor
        pixels = (images.permute(0, 3, 1, 2).float() - preprocessor.mean) / preprocessor.std
        heatmaps = self._model.head(self._model.backbone(pixels))
        if not self._flip_test:
            return heatmaps
        from mmpose.models.utils.tta import flip_heatmaps

        mirrored = self._model.head(self._model.backbone(pixels.flip(-1)))
        shift = self._model.test_cfg.get("shift_heatmap", False)
        return (heatmaps + flip_heatmaps(mirrored, list(COCO_MIRRORED), "heatmap", shift)) * 0.5


class _YoloPose:
    """An Ultralytics pose network: it sees whole frames, and its persons are matched to the given boxes."""

    def __init__(self, params: PoseParams, weights: Path, device: str) -> None:
        if params.flip_test:
            raise HarcacheError("pose backend 'ultralytics' has no flip test; set flip_test to false")
        self._network = YoloNetwork(weights, None, params.precision, device)
        if self._network.keypoint_shape is None or tuple(self._network.keypoint_shape) != (_KEYPOINTS, 3):
            raise HarcacheError(
                f"{weights}: finds no 17 keypoints with scores; use pose weights such as 'yolo11n-pose.pt'"
            )

    def estimate(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        for i, persons in enumerate(boxes):
            _check_boxes(persons, i)
        predicted = self._network.predict(frames, _YOLO_SCORE, _YOLO_NMS_IOU, _YOLO_PERSONS)
        return [_matched(persons, rows) for persons, rows in zip(boxes, predicted, strict=True)]


def _matched(boxes: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Give every box the predicted person that overlaps it most, each person to one box at most."""
    keypoints = np.full((len(boxes), _KEYPOINTS, 3), np.nan, np.float32)
    keypoints[..., 2] = 0
    given = torch.from_numpy(np.asarray(boxes, np.float32)[:, :4])
    overlaps = box_iou(given, torch.from_numpy(predicted[:, :4])).numpy()
    for box, person in zip(*linear_sum_assignment(overlaps, maximize=True), strict=True):
        if overlaps[box, person] >= _SAME_PERSON_IOU:
            keypoints[box] = predicted[person, 5:].reshape(_KEYPOINTS, 3)
    return keypoints


def _check_boxes(boxes: np.ndarray, frame: int) -> None:
    for box in boxes[:, :4]:
        if not (np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1]):
            raise HarcacheError(
                f"frame {frame}: the box {box.tolist()} is empty or not finite; "
                "expected x1 < x2 and y1 < y2 in pixels"
            )


def _read_config(path: Path) -> Any:
    mmcv_stub.install()
    from mmengine.config import Config

    config = Config.fromfile(path)
    try:
        trained_on = config.test_dataloader.dataset.type
        decoder = config.model.head.decoder
        flip_mode = config.model.test_cfg.get("flip_mode", "heatmap")
    except (AttributeError, KeyError) as error:
        raise HarcacheError(
            f"{path}: not a top-down config of mmpose 1.x ({error}); use such a config"
        ) from error
    if trained_on != "CocoDataset" or config.model.head.type != "HeatmapHead" or flip_mode != "heatmap":
        raise HarcacheError(
            f"{path}: a {config.model.head.type} trained on {trained_on} with {decoder.type}; "
            "expected heatmaps of the 17 keypoints of CocoDataset, such as an HRNet's"
        )
    return config


def _transforms(config: Any, path: Path) -> list[Any]:
    """Build the config's own transforms that make the crop, so that it is the one that mmpose makes."""
    import mmpose.datasets  # noqa: F401
    from mmpose.registry import TRANSFORMS

    steps = [dict(step) for step in config.test_dataloader.dataset.pipeline]
    known = ["LoadImage", "GetBBoxCenterScale", "TopdownAffine", "PackPoseInputs"]
    if [step["type"] for step in steps] != known:
        found = ", ".join(step["type"] for step in steps)
        raise HarcacheError(f"{path}: its test pipeline is {found}; expected {', '.join(known)}")
    return [TRANSFORMS.build(step) for step in steps[1:3]]


def _build(config: Any, path: Path) -> Any:
    from mmengine.registry import init_default_scope
    from mmpose.models import build_pose_estimator

    init_default_scope("mmpose")
    # The config would fetch the backbone's ImageNet weights, which the checkpoint replaces.
    config.model.backbone.init_cfg = None
    model = build_pose_estimator(config.model).eval()
    if model.head.out_channels != _KEYPOINTS:
        raise HarcacheError(
            f"{path}: finds {model.head.out_channels} keypoints; expected COCO's {_KEYPOINTS}"
        )
    return model


def _load_state(model: Any, path: Path) -> None:
    saved = load_tensors(path)
    try:
        model.load_state_dict(saved.get("state_dict", saved))
    except RuntimeError as error:
        raise HarcacheError(
            f"{path}: these weights don't fit the pose config ({str(error).splitlines()[1].strip()[:200]}); "
            "name the weights that belong to the config"
        ) from error


def _fused(backbone: Any) -> Any:
    """Fold batch norm into the convolutions before it, so that half precision rounds only once."""
    from mmcv.cnn import fuse_conv_bn

    return fuse_conv_bn(backbone)


def _decode(heatmaps: Tensor, codec: Any) -> tuple[np.ndarray, np.ndarray]:
    """Find keypoints in heatmaps (B, K, H, W) float32.

    Returns:
        (B, K, 2) float64, pixels of the network's input, x before y, and the scores (B, K) float32.
    """
    size = np.array(codec.heatmap_size)
    kind = type(codec).__name__
    if kind == "MSRAHeatmap" and not codec.unbiased:
        keypoints, scores = _decode_quarter(heatmaps)
        return keypoints.cpu().numpy() * codec.scale_factor, scores.cpu().numpy()
    if kind == "UDPHeatmap" and codec.heatmap_type == "gaussian":
        keypoints, scores = _decode_udp(heatmaps, codec.blur_kernel_size)
        return keypoints.cpu().numpy() / (size - 1) * codec.input_size, scores.cpu().numpy()
    decoded = [codec.decode(heatmap) for heatmap in heatmaps.cpu().numpy()]
    points, values = zip(*decoded, strict=True)
    return np.concatenate(points), np.concatenate(values)


def _maxima(heatmaps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the highest pixels' columns and rows, (B, K) int64 each, and their values."""
    scores, flat = heatmaps.flatten(2).max(dim=-1)
    return flat % heatmaps.shape[-1], flat // heatmaps.shape[-1], scores


class _Around:
    """Values near the pixels (x, y) of heatmaps; beyond the border the border's value."""

    def __init__(self, heatmaps: Tensor, x: Tensor, y: Tensor) -> None:
        self._width = heatmaps.shape[-1] + 2
        self._padded = F.pad(heatmaps, (1, 1, 1, 1), mode="replicate").flatten(2)
        self._center = (y + 1) * self._width + x + 1

    def __call__(self, dx: int, dy: int) -> Tensor:
        return self._padded.gather(2, (self._center + dy * self._width + dx)[..., None])[..., 0].double()


def _decode_quarter(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """The highest pixel, moved by a quarter towards its higher neighbour (https://arxiv.org/abs/1804.06208)."""
    height, width = heatmaps.shape[-2:]
    x, y, scores = _maxima(heatmaps)
    near = _Around(heatmaps, x, y)
    # mmpose leaves the outer pixels where they are: two on the left and on top, one elsewhere.
    inside_x = (x > 1) & (x < width - 1) & (y > 0)
    inside_y = (y > 1) & (y < height - 1) & (x > 0)
    shift = torch.stack(
        [(near(1, 0) - near(-1, 0)).sign() * inside_x, (near(0, 1) - near(0, -1)).sign() * inside_y], dim=-1
    )
    return _or_outside(torch.stack([x, y], dim=-1) + 0.25 * shift, scores), scores


def _decode_udp(heatmaps: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """The top of the parabola through a blurred heatmap's logarithm (https://arxiv.org/abs/1911.07524)."""
    x, y, scores = _maxima(heatmaps)
    near = _Around(_blur(heatmaps, kernel_size).clamp(1e-3, 50).log(), x, y)
    here, left, right, above, below = near(0, 0), near(-1, 0), near(1, 0), near(0, -1), near(0, 1)
    dx, dy = (right - left) / 2, (below - above) / 2
    epsilon = float(np.finfo(np.float32).eps)
    dxx, dyy = right - 2 * here + left + epsilon, below - 2 * here + above + epsilon
    dxy = (near(1, 1) - right - below + 2 * here - left - above + near(-1, -1)) / 2
    determinant = dxx * dyy - dxy**2
    offset = torch.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], dim=-1) / determinant[..., None]
    offset = torch.where(determinant[..., None] != 0, offset, 0.0)
    return _or_outside(torch.stack([x, y], dim=-1) - offset, scores), scores


def _or_outside(keypoints: Tensor, scores: Tensor) -> Tensor:
    """Put keypoints whose heatmap is nowhere positive at (-1, -1), as mmpose does."""
    return torch.where(scores[..., None] > 0, keypoints, -1.0)


def _blur(heatmaps: Tensor, kernel_size: int) -> Tensor:
    """Blur by a Gaussian with nothing beyond the border; the highest value stays what it was."""
    kernel = torch.from_numpy(cv2.getGaussianKernel(kernel_size, 0, cv2.CV_32F)).to(heatmaps.device).flatten()
    maps = heatmaps.flatten(0, 1)[:, None]
    maps = F.conv2d(maps, kernel.view(1, 1, 1, -1), padding=(0, kernel_size // 2))
    maps = F.conv2d(maps, kernel.view(1, 1, -1, 1), padding=(kernel_size // 2, 0))
    blurred = maps.view_as(heatmaps)
    return blurred * (heatmaps.amax(dim=(2, 3), keepdim=True) / blurred.amax(dim=(2, 3), keepdim=True))

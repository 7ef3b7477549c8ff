"""Pose estimators as networks of batches: mmpose's top-down heatmap networks, or Ultralytics' light ones.

mmpose's own inference runs one frame at a time and decodes keypoint by keypoint; here the persons of many
frames share a batch, and a whole batch is decoded at once. In float32 the results are mmpose's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harcache.models.pretrained import mmpose_stand_ins
from harcache.models.pretrained.batching import Finish, Image, Network
from harcache.models.pretrained.inference import BatchRunner, not_finite, quicken, repeatable, run_in
from harcache.models.pretrained.weight_files import find_config, find_weights, load_tensors
from harcache.models.pretrained.yolo import YoloNetwork
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import PoseParams
from harcache.pipeline.skeletons.joints import COCO_MIRRORED

__all__ = ["load_pose_estimator"]

_KEYPOINTS = 17
_CPU_BATCH, _GPU_BATCH = 8, 128  # crops; blanks that fill a batch cost time on a CPU

# A network that finds its own persons should find many; the boxes given decide which of them count.
_YOLO_SCORE = 0.05
_YOLO_NMS_IOU = 0.7
_YOLO_PERSONS = 100
_SAME_PERSON_IOU = 0.3


def load_pose_estimator(params: PoseParams, weights_dir: Path | None = None, device: str = "cpu") -> Network:
    """Load the pose estimator that ``params`` name.

    A frame's results, one after the other, are (n, 17, 3) float32 for its n boxes: x y score of COCO's
    keypoints in pixels of the frame; x and y are NaN, the score 0, where no person was found in a box. A box
    that is empty or not finite raises HarcacheError.

    Raises:
        HarcacheError: the package, config or weights are missing, or they don't fit together.
    """
    if params.backend == "ultralytics":
        return _YoloPose(params, find_weights(params.weights, weights_dir), device)
    mmpose_stand_ins.install()
    config_path = find_config(params.config)
    config = _read_config(config_path)
    weights = find_weights(params.weights, weights_dir)
    kind = _TopDown if _is_heatmaps(config) else _OtherTopDown
    return kind(params, config, config_path, weights, device)


class _TopDown:
    """A heatmap network of mmpose: crop as the config says, mean with the mirrored crop, decode."""

    def __init__(
        self, params: PoseParams, config: Any, config_path: Path, weights: Path, device: str
    ) -> None:
        self.batch = _CPU_BATCH if device == "cpu" else _GPU_BATCH
        self._crop = _Crop.of(config, config_path)
        self._error = not_finite(weights.name, params.precision)
        self._flip_test = params.flip_test
        self._precision = params.precision
        self._model = _build(config, config_path)
        self._codec = self._model.head.decoder
        _load_state(self._model, weights)
        self._model.backbone = _fused(self._model.backbone)
        run_in(params.precision, self._model.backbone)
        for part in (self._model.neck, self._model.head) if self._model.with_neck else (self._model.head,):
            run_in("float32", part)
        quicken(self._model, device)
        self._model.to(device, memory_format=torch.channels_last)
        self._mirrored = torch.tensor(COCO_MIRRORED, device=device)
        self._runner = BatchRunner(self._heatmaps, self._reduce, self.batch, params.precision, device)
        self.memory = self._runner.memory

    def prepare(self, frame: np.ndarray, boxes: np.ndarray) -> list[Image]:
        return self._crop.images(frame, boxes)

    def start(self, pixels: np.ndarray, images: Sequence[Image]) -> Finish:
        outputs = self._runner.start(pixels, len(images))

        def finish() -> tuple[Sequence[np.ndarray | HarcacheError], float]:
            (finite, *reduced), seconds = outputs()
            keypoints, scores = _finish_decoding(reduced, self._codec)
            return self._in_frame(keypoints, scores, finite.tolist(), images), seconds

        return finish

    def _in_frame(
        self, keypoints: np.ndarray, scores: np.ndarray, finite: Sequence[bool], images: Sequence[Image]
    ) -> list[np.ndarray | HarcacheError]:
        """Bring keypoints from the network's input, (B, K, 2), into frames: (1, K, 3) float32 an image."""
        corner, scale = np.stack([image.place for image in images], axis=1)[:, :, None]
        keypoints = keypoints / np.array(self._crop.size) * scale + corner
        found = np.concatenate([keypoints, scores[..., None]], axis=2).astype(np.float32)
        return [one if sound else self._error for one, sound in zip(found[:, None], finite, strict=True)]

    def _pixels(self, images: Tensor) -> Tensor:
        """(B, h, w, 3) uint8 RGB → (B, 3, h, w) float32."""
        preprocessor = self._model.data_preprocessor
        return (images.permute(0, 3, 1, 2).float() - preprocessor.mean) / preprocessor.std

    def _heatmaps(self, images: Tensor) -> Tensor:
        """(B, h, w, 3) uint8 RGB → (B, 17, H, W) float32."""
        pixels = self._pixels(images)
        heatmaps = self._model.head(self._model.extract_feat(pixels))
        if not self._flip_test:
            return heatmaps
        mirrored = self._model.head(self._model.extract_feat(pixels.flip(-1))).flip(-1)
        mirrored = mirrored.index_select(1, self._mirrored)
        if self._model.test_cfg.get("shift_heatmap", False):
            mirrored[..., 1:] = mirrored[..., :-1].clone()
        return (heatmaps + mirrored) * 0.5

    def _reduce(self, heatmaps: Tensor) -> tuple[Tensor, ...]:
        return heatmaps.isfinite().flatten(1).all(1), *_start_decoding(heatmaps, self._codec)


class _OtherTopDown(_TopDown):
    """Any other top-down network of mmpose (SimCC, regression): its head decodes, and the device waits."""

    def start(self, pixels: np.ndarray, images: Sequence[Image]) -> Finish:
        """Find keypoints at once: heads decode on the CPU, each in its own way."""
        from mmpose.structures import PoseDataSample

        begun = perf_counter()
        pixels[len(images) :] = 0
        about = {"flip_indices": list(COCO_MIRRORED), "input_size": self._crop.size}
        test = {**self._model.test_cfg, "flip_test": self._flip_test}
        with repeatable(self._precision):
            crops = self._pixels(torch.from_numpy(pixels).to(self._mirrored.device))
            features = self._model.extract_feat(crops)
            if self._flip_test:
                features = [features, self._model.extract_feat(crops.flip(-1))]
            samples = [PoseDataSample(metainfo=about)] * self.batch
            found = self._model.head.predict(features, samples, test_cfg=test)[: len(images)]
        keypoints = np.concatenate([np.asarray(one.keypoints) for one in found])
        scores = np.concatenate([np.asarray(one.keypoint_scores) for one in found])
        finite = np.isfinite(keypoints).all(axis=(1, 2)) & np.isfinite(scores).all(axis=1)
        results = self._in_frame(keypoints, scores, finite.tolist(), images)
        seconds = perf_counter() - begun
        return lambda: (results, seconds)


@dataclass(frozen=True)
class _Crop:
    """The region around a person that a network sees, as mmpose cuts it."""

    size: tuple[int, int]  # width, height
    padding: float
    matrix: Callable[..., np.ndarray]

    @classmethod
    def of(cls, config: Any, path: Path) -> "_Crop":
        """Read the region from the config's own steps."""
        from mmpose.structures.bbox import get_udp_warp_matrix, get_warp_matrix

        steps = [dict(step) for step in config.test_dataloader.dataset.pipeline]
        known = ["LoadImage", "GetBBoxCenterScale", "TopdownAffine", "PackPoseInputs"]
        if [step["type"] for step in steps] != known:
            found = ", ".join(step["type"] for step in steps)
            raise HarcacheError(f"{path}: its test pipeline is {found}; expected {', '.join(known)}")
        return cls(
            tuple(steps[2]["input_size"]),
            steps[1].get("padding", 1.25),
            get_udp_warp_matrix if steps[2].get("use_udp", False) else get_warp_matrix,
        )

    def images(self, frame: np.ndarray, boxes: np.ndarray) -> list[Image]:
        """Cut the boxes out; an image's place is (2, 2), its region's corner and size in frame pixels."""
        _check_boxes(boxes)
        box = np.asarray(boxes[:, :4], np.float32)
        center, scale = (box[:, 2:] + box[:, :2]) * 0.5, (box[:, 2:] - box[:, :2]) * self.padding
        width, height = scale[:, :1], scale[:, 1:]
        ratio = self.size[0] / self.size[1]
        scale = np.hstack([np.maximum(width, height * ratio), np.maximum(height, width / ratio)])
        shape = (self.size[1], self.size[0], 3)
        return [
            Image(
                shape,
                partial(self._draw, frame, self.matrix(c, s, 0.0, self.size)),
                np.stack([c - 0.5 * s, s]),
            )
            for c, s in zip(center, scale, strict=True)
        ]

    def _draw(self, frame: np.ndarray, matrix: np.ndarray, image: np.ndarray) -> None:
        cv2.warpAffine(frame, matrix, self.size, dst=image, flags=cv2.INTER_LINEAR)


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
            score=_YOLO_SCORE,
            nms_iou=_YOLO_NMS_IOU,
            limit=_YOLO_PERSONS,
        )
        self.batch, self.memory = self._network.batch, self._network.memory
        if self._network.keypoint_shape is None or tuple(self._network.keypoint_shape) != (_KEYPOINTS, 3):
            raise HarcacheError(
                f"{weights}: finds no 17 keypoints with scores; use pose weights such as 'yolo11n-pose.pt'"
            )

    def prepare(self, frame: np.ndarray, boxes: np.ndarray) -> list[Image]:
        _check_boxes(boxes)
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


def _check_boxes(boxes: np.ndarray) -> None:
    for box in boxes[:, :4]:
        if not (np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1]):
            raise HarcacheError(
                f"the box {box.tolist()} is empty or not finite; expected x1 < x2 and y1 < y2 in pixels"
            )


def _read_config(path: Path) -> Any:
    from mmengine.config import Config

    config = Config.fromfile(path)
    try:
        trained_on = config.test_dataloader.dataset.type
        head, decoder = config.model.head.type, config.model.head.decoder.type
        kind = config.model.type
    except (AttributeError, KeyError) as error:
        raise HarcacheError(
            f"{path}: not a top-down config of mmpose 1.x ({error}); use such a config"
        ) from error
    if trained_on != "CocoDataset" or kind != "TopdownPoseEstimator":
        raise HarcacheError(
            f"{path}: a {kind} with a {head} trained on {trained_on} with {decoder}; "
            "expected a top-down network for the 17 keypoints of CocoDataset, such as an HRNet"
        )
    return config


def _is_heatmaps(config: Any) -> bool:
    flip_mode = config.model.get("test_cfg", {}).get("flip_mode", "heatmap")
    return config.model.head.type == "HeatmapHead" and flip_mode == "heatmap"


def _build(config: Any, path: Path) -> Any:
    from mmengine.registry import init_default_scope

    with mmpose_stand_ins.without_training():
        from mmpose.models import build_pose_estimator

    init_default_scope("mmpose")
    # The config would fetch the backbone's ImageNet weights, which the checkpoint replaces.
    config.model.backbone.init_cfg = None
    _take_from_mmpose(config.model, path)
    model = build_pose_estimator(config.model).eval()
    found = getattr(model.head, "out_channels", None) or getattr(model.head, "num_joints", None)
    if found != _KEYPOINTS:
        raise HarcacheError(f"{path}: finds {found} keypoints; expected COCO's {_KEYPOINTS}")
    return model


def _take_from_mmpose(model: Any, path: Path) -> None:
    """Take the parts that a config takes from mmdet, such as RTMPose's backbone, from mmpose's copies."""
    from mmpose.registry import MODELS

    for part in (model.backbone, model.get("neck") or {}):
        if part.get("_scope_") != "mmdet":
            continue
        if part["type"] in MODELS.module_dict:
            del part["_scope_"]
        elif mmpose_stand_ins.stands_in("mmdet"):
            raise HarcacheError(
                f"{path}: its {part['type']} is mmdet's, which is not installed; use another config, or "
                "install mmdet"
            )


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


def _start_decoding(heatmaps: Tensor, codec: Any) -> tuple[Tensor, ...]:
    """Turn heatmaps (B, K, H, W) float32 into what `_finish_decoding` needs, without leaving the device."""
    if _is_quarter(codec):
        return _decode_quarter(heatmaps)
    if _is_udp(codec):
        return _decode_udp(heatmaps, _gaussian(codec.blur_kernel_size, heatmaps.device))
    return (heatmaps,)


def _finish_decoding(found: Sequence[Tensor], codec: Any) -> tuple[np.ndarray, np.ndarray]:
    """Find keypoints.

    Returns:
        (B, K, 2) float64, pixels of the network's input, x before y, and the scores (B, K) float32.
    """
    if _is_quarter(codec):
        return found[0].numpy() * codec.scale_factor, found[1].numpy()
    if _is_udp(codec):
        return found[0].numpy() / (np.array(codec.heatmap_size) - 1) * codec.input_size, found[1].numpy()
    decoded = [codec.decode(heatmap) for heatmap in found[0].numpy()]
    points, values = zip(*decoded, strict=True)
    return np.concatenate(points), np.concatenate(values)


def _is_quarter(codec: Any) -> bool:
    return type(codec).__name__ == "MSRAHeatmap" and not codec.unbiased


def _is_udp(codec: Any) -> bool:
    return type(codec).__name__ == "UDPHeatmap" and codec.heatmap_type == "gaussian"


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


def _decode_udp(heatmaps: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The top of the parabola through a blurred heatmap's logarithm (https://arxiv.org/abs/1911.07524)."""
    x, y, scores = _maxima(heatmaps)
    near = _Around(_blur(heatmaps, kernel).clamp(1e-3, 50).log(), x, y)
    here, left, right, above, below = near(0, 0), near(-1, 0), near(1, 0), near(0, -1), near(0, 1)
    dx, dy = (right - left) / 2, (below - above) / 2
    epsilon = float(np.finfo(np.float32).eps)
    dxx, dyy = right - 2 * here + left + epsilon, below - 2 * here + above + epsilon
    dxy = (near(1, 1) - right - below + 2 * here - left - above + near(-1, -1)) / 2
    determinant = dxx * dyy - dxy**2
    offset = torch.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], dim=-1) / determinant[..., None]
    offset = offset.masked_fill(determinant[..., None] == 0, 0.0)
    return _or_outside(torch.stack([x, y], dim=-1) - offset, scores), scores


def _or_outside(keypoints: Tensor, scores: Tensor) -> Tensor:
    """Put keypoints whose heatmap is nowhere positive at (-1, -1), as mmpose does."""
    return keypoints.masked_fill(scores[..., None] <= 0, -1.0)


@lru_cache
def _gaussian(size: int, device: torch.device) -> Tensor:
    # Brought to the device once: each such copy would wait for all that the device has to do.
    return torch.from_numpy(cv2.getGaussianKernel(size, 0, cv2.CV_32F)).flatten().to(device)


def _blur(heatmaps: Tensor, kernel: Tensor) -> Tensor:
    """Blur by a Gaussian with nothing beyond the border; the highest value stays what it was."""
    half = len(kernel) // 2
    maps = heatmaps.flatten(0, 1)[:, None]
    maps = F.conv2d(maps, kernel.view(1, 1, 1, -1), padding=(0, half))
    maps = F.conv2d(maps, kernel.view(1, 1, -1, 1), padding=(half, 0))
    blurred = maps.view_as(heatmaps)
    return blurred * (heatmaps.amax(dim=(2, 3), keepdim=True) / blurred.amax(dim=(2, 3), keepdim=True))

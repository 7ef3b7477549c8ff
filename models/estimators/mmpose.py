"""mmpose's top-down networks as networks of batches, which give the keypoints of many persons at once.

mmpose's own inference runs one frame at a time and decodes keypoint by keypoint; here the persons of many
frames share a batch, and a whole batch is decoded at once. In float32 the results are mmpose's.
"""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harcache.models.pretrained import mmpose_stand_ins
from harcache.models.pretrained.batch_runner import BatchRunner
from harcache.models.pretrained.cpu_convolutions import speed_up_convolutions
from harcache.models.pretrained.heatmap_decoding import finish_decoding, start_decoding
from harcache.models.pretrained.mmpose_networks import build, crop_of, gives_heatmaps, read_config
from harcache.models.pretrained.network import Finish, Image, Network
from harcache.models.pretrained.number_format import not_finite, repeatable, run_in
from harcache.models.pretrained.weight_files import find_config, find_weights
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import PoseParams
from harcache.pipeline.skeletons.joints import COCO_MIRRORED

__all__ = ["load"]

_CPU_BATCH, _GPU_BATCH = 8, 128  # crops; blanks that fill a batch cost time on a CPU


def load(params: PoseParams, weights_dir: Path | None, device: str) -> Network:
    """Load the network of the config and the weights that ``params`` name."""
    mmpose_stand_ins.install()
    config_path = find_config(params.config)
    config = read_config(config_path)
    weights = find_weights(params.weights, weights_dir)
    kind = _TopDown if gives_heatmaps(config) else _OtherTopDown
    return kind(params, config, config_path, weights, device)


class _TopDown:
    """A heatmap network of mmpose: crop as the config says, mean with the mirrored crop, decode."""

    def __init__(
        self, params: PoseParams, config: Any, config_path: Path, weights: Path, device: str
    ) -> None:
        self.batch = _CPU_BATCH if device == "cpu" else _GPU_BATCH
        self._crop = crop_of(config, config_path)
        self._error = not_finite(weights.name, params.precision)
        self._flip_test = params.flip_test
        self._precision = params.precision
        self._model = build(config, config_path, weights)
        self._codec = self._model.head.decoder
        run_in(params.precision, self._model.backbone)
        for part in (self._model.neck, self._model.head) if self._model.with_neck else (self._model.head,):
            run_in("float32", part)
        speed_up_convolutions(self._model, device)
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
            keypoints, scores = finish_decoding(reduced, self._codec)
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
        return heatmaps.isfinite().flatten(1).all(1), *start_decoding(heatmaps, self._codec)


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

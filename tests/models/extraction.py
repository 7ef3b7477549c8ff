"""Networks are tried the way the stages use them: fed from threads, in batches."""

from collections.abc import Sequence

import cv2
import numpy as np

from harcache.models.pretrained.batching import extract
from harcache.models.pretrained.network import Network
from harcache.pipeline.base.errors import HarcacheError


def make_frames(count: int, height: int = 120, width: int = 160, seed: int = 0) -> list[np.ndarray]:
    """Smooth random pictures."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 12, 16, 3), np.uint8)
    return [cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC) for picture in small]


def detect(detector: Network, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return each frame's boxes."""
    return [found for (found,) in _extract(detector, frames, [np.empty((0, 5))] * len(frames))]


def estimate(
    estimator: Network, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return the keypoints of each frame's boxes."""
    nobody = np.empty((0, 17, 3), np.float32)
    return [np.concatenate([nobody, *found]) for found in _extract(estimator, frames, boxes)]


def _extract(
    network: Network, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]
) -> list[list[np.ndarray]]:
    found = extract(network, {"clip": zip(frames, boxes, strict=True)}, threads=1)["clip"]
    if isinstance(found, HarcacheError):
        raise found
    return found

"""The region around a person that a top-down network sees, cut out as mmpose cuts it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from harcache.models.pretrained.network import Image
from harcache.pipeline.base.errors import HarcacheError

__all__ = ["PersonCrop", "check_boxes"]


@dataclass(frozen=True)
class PersonCrop:
    """The region around a person that a network sees.

    ``size`` is the network's input, width before height; ``padding`` enlarges a box. ``matrix`` makes the
    affine map from frame to input of a centre, a size, an angle and the input's size.
    """

    size: tuple[int, int]
    padding: float
    matrix: Callable[..., np.ndarray]

    def images(self, frame: np.ndarray, boxes: np.ndarray) -> list[Image]:
        """Cut the boxes out; an image's place is (2, 2), its region's corner and size in frame pixels."""
        check_boxes(boxes)
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


def check_boxes(boxes: np.ndarray) -> None:
    """Raise HarcacheError for a box of (n, 4 or more) that is empty or not finite."""
    for box in boxes[:, :4]:
        if not (np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1]):
            raise HarcacheError(
                f"the box {box.tolist()} is empty or not finite; expected x1 < x2 and y1 < y2 in pixels"
            )

"""Frames scaled into the input of a network that sees them whole, and its results brought back."""

from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["Letterbox"]

_GREY = 114  # what Ultralytics fills the border with, in training too


@dataclass(frozen=True)
class Letterbox:
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
    def fit(cls, frame_size: tuple[int, int], image_size: int, stride: int) -> "Letterbox":
        """Scale ``frame_size``, height before width, to ``image_size`` pixels, filled up to ``stride``s."""
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

"""What the demo's videos show, as it was drawn; apart from the drawing, so that readers need no OpenCV."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["TRUTH", "Truth", "read_truth"]

TRUTH = "truth.npz"
"""The file of it, beside the videos."""


@dataclass(frozen=True)
class Truth:
    """What was drawn, in pixels: boxes (M, T, 4) float32 x1 y1 x2 y2, keypoints (M, T, 17, 2) float32."""

    boxes: np.ndarray
    keypoints: np.ndarray


def read_truth(root: Path) -> dict[str, Truth] | None:
    """Return the truth of each clip by id, or None where ``root`` holds none (every real dataset)."""
    path = root / TRUTH
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        ids = {name.split("/")[0] for name in arrays.files}
        return {id_: Truth(arrays[f"{id_}/boxes"], arrays[f"{id_}/keypoints"]) for id_ in sorted(ids)}

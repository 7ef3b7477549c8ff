"""Pose estimators by the name of their backend: a module of that name here, with a function ``load``.

A pose estimator is a `Network` that takes frames with boxes; the rest of the program sees keypoints alone.
"""

from importlib import import_module
from pathlib import Path

from harcache.models.pretrained.network import Network
from harcache.models.pretrained.weight_files import find_config, find_weights
from harcache.pipeline.params import PoseParams

__all__ = ["files_of_estimator", "load_pose_estimator"]


def load_pose_estimator(params: PoseParams, weights_dir: Path | None = None, device: str = "cpu") -> Network:
    """Load the pose estimator that ``params`` name.

    A frame's results, one after the other, are (n, 17, 3) float32 for its n boxes: x y score of COCO's
    keypoints in pixels of the frame; x and y are NaN, the score 0, where no person was found in a box. A box
    that is empty or not finite raises HarcacheError.

    Raises:
        HarcacheError: the package, config or weights are missing, or they don't fit together.
    """
    return import_module(f"{__package__}.{params.backend}").load(params, weights_dir, device)


def files_of_estimator(params: PoseParams, weights_dir: Path | None = None) -> list[Path]:
    """Return the files that poses depend on, the weights first; public weights are fetched.

    Raises HarcacheError where one of them is missing.
    """
    configs = [find_config(params.config)] if params.backend == "mmpose" else []
    return [find_weights(params.weights, weights_dir), *configs]

"""Person detectors by the name of their backend: a module of that name here, with a function ``load``.

A detector is a `Network` that takes whole frames; the rest of the program sees boxes in frame pixels alone.
"""

from importlib import import_module
from pathlib import Path

from harcache.models.pretrained.network import Network
from harcache.pipeline.params import DetectParams

__all__ = ["load_detector"]


def load_detector(params: DetectParams, weights_dir: Path | None = None, device: str = "cpu") -> Network:
    """Load the detector that ``params`` name.

    It makes one image of a frame, whose result is (n, 5) float32, x1 y1 x2 y2 score, in pixels within the
    frame, best score first.

    Raises:
        HarcacheError: the backend's package or the weights are missing, or the weights don't fit.
    """
    return import_module(f"{__package__}.{params.backend}").load(params, weights_dir, device)

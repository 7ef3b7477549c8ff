"""The optional parts of harcache, and the command that installs each.

Modules import what they need. An import that fails names a Python module; a reader needs a command instead.
This table translates one into the other, for the command line and for those who import harcache.
"""

import importlib
import importlib.util
from collections.abc import Collection
from dataclasses import dataclass
from types import ModuleType

from harcache.pipeline.base.errors import StandstillError

__all__ = [
    "LAYERS",
    "MMPOSE_COMMAND",
    "Layer",
    "MissingPartError",
    "explained",
    "is_there",
    "load",
    "require",
]

MMPOSE_COMMAND = 'pip install --no-deps -r "$(harcache check --mmpose)"'
"""pip can't resolve mmpose's own requirements: one of them, chumpy, does not build."""

_OPENCV_LIBRARIES = ("libGL", "libgthread", "libglib", "libX", "libxcb", "libSM", "libICE")


@dataclass(frozen=True, slots=True)
class Layer:
    """A part that is installed on its own: its name, the modules that it brings, what it is for.

    ``modules``: import name to the name of the distribution that holds it.
    """

    name: str
    purpose: str
    modules: dict[str, str]

    @property
    def command(self) -> str:
        """The command that installs the layer."""
        return MMPOSE_COMMAND if self.name == "mmpose" else f"pip install 'harcache[{self.name}]'"


_BASE = {
    "click": "click",
    "google_crc32c": "google-crc32c",
    "numcodecs": "numcodecs",
    "numpy": "numpy",
    "simplejpeg": "simplejpeg",
    "yaml": "pyyaml",
    "zarr": "zarr",
}
_NETWORKS = {
    "jinja2": "jinja2",
    "markupsafe": "markupsafe",
    "psutil": "psutil",
    "rich": "rich",
    "torch": "torch",
    "torchvision": "torchvision",
}
LAYERS: dict[str, Layer] = {
    layer.name: layer
    for layer in (
        Layer("base", "read caches", _BASE),
        Layer("train", "train from caches", {**_NETWORKS, "lightning_fabric": "lightning-fabric"}),
        Layer(
            "extract",
            "make caches from videos",
            {
                **_NETWORKS,
                "av": "av",
                "cryptography": "cryptography",
                "cv2": "opencv-python",
                "dask": "dask",
                "distributed": "distributed",
                "h5py": "h5py",
                "PIL": "pillow",
                "scipy": "scipy",
            },
        ),
        Layer("yolo", "detectors and light poses by Ultralytics (AGPL-3.0)", {"ultralytics": "ultralytics"}),
        Layer(
            "mmpose",
            "pose networks by mmpose",
            {"mmpose": "mmpose", "mmengine": "mmengine", "mmcv": "mmcv-lite"},
        ),
        Layer("pipeline", "dvc repro and DVCLive's logs", {"dvc": "dvc", "dvclive": "dvclive"}),
        Layer("slurm", "extraction on SLURM", {"dask_jobqueue": "dask-jobqueue"}),
        Layer("dashboard", "Dask's dashboard", {"bokeh": "bokeh"}),
        Layer("tensorboard", "TensorBoard's logs", {"tensorboard": "tensorboard"}),
        Layer(
            "export",
            "networks in ONNX",
            {"onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"},
        ),
        Layer("bench", "rivals of the loader", {"litdata": "litdata", "webdataset": "webdataset"}),
    )
}
"""All layers by name; ``base`` is what ``pip install harcache`` brings."""


class MissingPartError(StandstillError, ImportError):
    """A part of harcache is not installed, or can't be loaded; the message names the command that helps."""


def load(module: str, wanted: str | None = None) -> ModuleType:
    """Import a module, of harcache or of an optional part.

    ``wanted``: the layer to name where several bring what is missing. Raises MissingPartError.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        told = explained(error, wanted)
        if told is None:
            raise
        raise told from error


def require(*modules: str) -> None:
    """Raise MissingPartError for the first of the top-level ``modules`` that is not installed."""
    for module in modules:
        if not is_there(module):
            load(module)


def is_there(module: str) -> bool:
    """Return whether a top-level module is installed, without loading it."""
    return importlib.util.find_spec(module) is not None


def explained(error: ImportError, wanted: str | None = None) -> MissingPartError | None:
    """Return the error that names the command for a failed import, or None where no command helps."""
    if isinstance(error, MissingPartError):
        return error
    module = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError):
        layer = _layer_of(module, wanted)
        # A part of an installed package that is not there is another defect.
        if layer is None or is_there(module):
            return None
        return MissingPartError(
            f"the Python package {layer.modules[module]} is not installed; run: {layer.command}"
        )
    if _lacks(str(error), _OPENCV_LIBRARIES):
        return MissingPartError(
            f"OpenCV can't be loaded ({error}); run: apt-get install libgl1 libglib2.0-0, or use the OpenCV "
            "for machines without a display: pip uninstall opencv-python, then "
            "pip install --force-reinstall opencv-python-headless"
        )
    return None


def _lacks(message: str, libraries: Collection[str]) -> bool:
    return ".so" in message and message.startswith(tuple(libraries))


def _layer_of(module: str, wanted: str | None) -> Layer | None:
    holders = [layer for layer in LAYERS.values() if module in layer.modules]
    return next((layer for layer in holders if layer.name == wanted), holders[0] if holders else None)

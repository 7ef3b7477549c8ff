"""Stand-ins for packages that mmpose imports but that top-down inference never calls.

mmcv's compiled operations, mmdet and xtcocotools: without them no compiler is needed. What does call one of
them gets an error that says so. Where the real package is installed, it is used.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.layers import require

__all__ = ["install", "stands_in", "without_training"]

# Each with the modules in it that mmpose imports.
_PACKAGES = {
    "mmcv._ext": (),
    "mmdet": ("utils",),
    "xtcocotools": ("coco", "cocoeval", "mask"),
}
_REMEDIES = {
    "mmcv._ext": "mmcv is installed without its compiled operations; use a model that needs none, or install "
    "the full mmcv instead of mmcv-lite",
    "mmdet": "mmdet is not installed; use a model that does not need it, or install it",
    "xtcocotools": "xtcocotools is not installed; harcache does not need it, mmpose's own data sets and "
    "metrics do",
}
_TRAINING = (
    *("mmpose.datasets", "mmpose.datasets.datasets", "mmpose.datasets.datasets.utils"),
    *("mmpose.evaluation", "mmpose.evaluation.functional", "mmpose.evaluation.functional.nms"),
    *("mmengine._strategy.fsdp", "mmengine.model.wrappers.fully_sharded_distributed"),
    *("mmengine.optim.optimizer.zero_optimizer", "mmdet.utils.mot_error_visualize"),
)


class _StandIn(ModuleType):
    """A module whose every public attribute is an operation that raises when it is called."""

    def __init__(self, name: str, called: str, problem: str) -> None:
        super().__init__(name)
        self.__called__ = called
        self.__problem__ = problem
        # mmengine looks modules up by their spec, so one without a spec counts as missing.
        self.__spec__ = ModuleSpec(name, loader=None)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def operation(*_args: Any, **_kwargs: Any) -> Any:
            raise HarcacheError(f"{self.__called__}.{name} was called, but {self.__problem__}")

        return operation


def install() -> None:
    """Put the stand-ins in place; call it before the first import of mmpose.

    Does nothing where the real packages are installed or the stand-ins already are. Raises MissingPartError
    where mmpose itself is not installed.
    """
    require("mmpose", "mmengine", "mmcv")
    for package, modules in _PACKAGES.items():
        if package in sys.modules or importlib.util.find_spec(package) is not None:
            continue
        called = "mmcv.ops" if package == "mmcv._ext" else package
        stand_in = sys.modules[package] = _StandIn(package, called, _REMEDIES[package])
        for module in modules:
            name = f"{package}.{module}"
            sys.modules[name] = _StandIn(name, name, _REMEDIES[package])
            setattr(stand_in, module, sys.modules[name])


def stands_in(package: str) -> bool:
    """Return whether a stand-in was installed for ``package``."""
    return isinstance(sys.modules.get(package), _StandIn)


@contextmanager
def without_training() -> Iterator[None]:
    """Import mmpose's models in this block, without the data sets, metrics and more that only training calls.

    Those bring in SciPy's statistics, COCO's tools, PyTorch's sharded training and SymPy with it, and
    Matplotlib: most of the time that importing mmpose takes.
    """
    if any(name in sys.modules for name in _TRAINING):
        yield
        return
    for name in _TRAINING:
        sys.modules[name] = _StandIn(name, name, "mmpose was loaded for inference; use another model")
    try:
        yield
    finally:
        for name in _TRAINING:
            del sys.modules[name]

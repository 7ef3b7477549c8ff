"""A stand-in for mmcv's compiled operations, which mmpose imports but top-down HRNet inference never calls.

It spares every user a CUDA build of mmcv; what does call such an operation gets an error that says so.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from harcache.pipeline.base.errors import HarcacheError

__all__ = ["install", "without_training"]

_NAME = "mmcv._ext"
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

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def operation(*_args: Any, **_kwargs: Any) -> Any:
            raise HarcacheError(f"{self.__called__}.{name} was called, but {self.__problem__}")

        return operation


def install() -> None:
    """Put the stand-in in place; call it before the first import of mmpose.

    Does nothing where the real `mmcv._ext` is installed or the stand-in already is.
    """
    if _NAME in sys.modules or importlib.util.find_spec(_NAME) is not None:
        return
    module = _StandIn(
        _NAME,
        "mmcv.ops",
        "mmcv is installed without its compiled operations; use a model that needs none, or install the full "
        "mmcv 2.1.0 in place of mmcv-lite",
    )
    # mmengine looks modules up by their spec, so one without a spec counts as missing.
    module.__spec__ = ModuleSpec(_NAME, loader=None)
    sys.modules[_NAME] = module


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

"""A stand-in for mmcv's compiled operations, which mmpose imports but top-down HRNet inference never calls.

It spares every user a CUDA build of mmcv; what does call such an operation gets an error that says so.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from pipeline.errors import HarcacheError

__all__ = ["install"]

_NAME = "mmcv._ext"


class _StandIn(ModuleType):
    """A module whose every public attribute is an operation that raises when it is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def operation(*_args: Any, **_kwargs: Any) -> Any:
            raise HarcacheError(
                f"mmcv.ops.{name} was called, but mmcv is installed without its compiled operations; "
                "use a model that needs none, or install the full mmcv 2.1.0 in place of mmcv-lite"
            )

        return operation


def install() -> None:
    """Put the stand-in in place; call it before the first import of mmpose.

    Does nothing where the real `mmcv._ext` is installed or the stand-in already is.
    """
    if _NAME in sys.modules or importlib.util.find_spec(_NAME) is not None:
        return
    module = _StandIn(_NAME)
    # mmengine looks modules up by their spec, so one without a spec counts as missing.
    module.__spec__ = ModuleSpec(_NAME, loader=None)
    sys.modules[_NAME] = module

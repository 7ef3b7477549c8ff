"""Public names of a package that load their module when first used: PyTorch alone takes seconds to import."""

from collections.abc import Callable, Mapping
from typing import Any

from harcache.pipeline.base.layers import load

__all__ = ["lazy_names"]


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a package; ``modules``: public name to the full name of its module.

    It raises MissingPartError where a module needs a part of harcache that is not installed.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(load(modules[name]), name)

    return get

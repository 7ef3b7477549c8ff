"""How the suite runs: one thread a process, since its processes share the cores, and dear files first."""

import os

import pytest
from hypothesis import settings

pytest_plugins = ["tests.tiny_demo"]

# Before anything loads PyTorch; commands and workers inherit it. Threads that wait for cores spin on them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long one example takes says more of what else the machine does than of the code.
settings.register_profile("harcache", deadline=None)
settings.load_profile("harcache")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that hold slow tests, whole builds before all: none is then left for one core."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, len(item.path.parts)))

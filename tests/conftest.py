"""How the suite runs: one thread a process, since its processes share the cores, and dear files first."""

import os

import pytest

pytest_plugins = ["tests.tiny_demo"]

# Before anything loads PyTorch; commands and workers inherit it. Threads that wait for cores spin on them.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that hold slow tests, whole builds before all: none is then left for one core."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, len(item.path.parts)))

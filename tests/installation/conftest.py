"""The wheel, built once for all processes of a run."""

import fcntl
import os
from pathlib import Path

import pytest

from tests.installation.environments import build_wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel."""
    base = tmp_path_factory.getbasetemp()
    # The processes of pytest-xdist have a folder each in one of the run.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheel"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return next(folder.glob("*.whl"), None) or build_wheel(folder)

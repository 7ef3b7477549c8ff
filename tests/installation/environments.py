"""Wheels and environments for tests: harcache as others have it, away from the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.projects import ROOT

_UV = Path(sys.executable).with_name("uv")


def build_wheel(folder: Path) -> Path:
    """Build the project's wheel into ``folder`` and return its path."""
    # What an earlier build left there would be packed again, modules that are gone included.
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    _run(_UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    (wheel,) = folder.glob("harcache-*.whl")
    return wheel


def light_environment(folder: Path, wheel: Path) -> Path:
    """Make a virtual environment of the wheel alone, which borrows all other packages of this one.

    It is there in seconds. An editable harcache is not borrowed: of a folder in a .pth file Python reads no
    .pth files.
    """
    return _environment(folder, "--no-deps", wheel)


def editable_environment(folder: Path) -> Path:
    """Make the same of an editable harcache."""
    return _environment(folder, "--no-deps", "--editable", ROOT)


def _environment(folder: Path, *what: object) -> Path:
    _run(_UV, "venv", "--quiet", "--python", sys.executable, folder)
    _run(_UV, "pip", "install", "--quiet", "--python", folder, *what)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def environment_of(installed: Path, home: Path) -> dict[str, str]:
    """What commands run in: the programs of ``installed``, a home of its own, and nothing of the outside."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("HARCACHE_", "DVC_", "PYTHON"))}
    path = os.pathsep.join([str(installed / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return own | {"PATH": path, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

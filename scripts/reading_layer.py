"""Measure what `pip install harcache` brings, alone: `python scripts/reading_layer.py [WHEEL]`.

It installs the wheel, built from the checkout where none is given, in a fresh environment without any extra,
and prints the packages beside it, their megabytes, and the seconds from starting Python to the first frame of
a store. Ends with 1 where one of them is above its bound.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

MOST_PACKAGES, MOST_MEGABYTES, MOST_SECONDS = 12, 150, 1.5
_RUNS = 7  # of which the fastest counts: what else the machine does is no property of the package
_ROOT = Path(__file__).resolve().parents[1]

_MAKE = """
import sys
import numpy as np
from harcache.cache.array_spec import ArraySpec
from harcache.cache.clip_index import IndexEntry
from harcache.cache.shard_writer import ShardWriter
from harcache.cache.store_paths import shard_path
from harcache.cache.store_writer import create_store, write_index
rows, size = 48, 224
spec = ArraySpec("frames", (size, size, 3), "uint8", "jpeg")
create_store(sys.argv[1], [spec], rows, {"dataset": "one"})
with ShardWriter(shard_path(sys.argv[1], spec, 0), spec, rows) as writer:
    for row in range(rows):
        writer.append(np.full((size, size, 3), row, np.uint8))
write_index(sys.argv[1], [IndexEntry("clip", 0, 0, rows, range(rows), (0, 0, size, size), (size, size))])
"""
_READ = """
import sys, time
from harcache import cache
store = cache.open(sys.argv[1])
assert store.frames(store.ids[0])[0].shape == (224, 224, 3)
print(time.monotonic())
"""


def main() -> None:
    """Print the figures; exit with 1 where one is above its bound."""
    with tempfile.TemporaryDirectory(prefix="harcache-reading-") as name:
        folder = Path(name)
        wheel = Path(sys.argv[1]).resolve() if sys.argv[1:] else built(folder / "wheel")
        python = installed(wheel, folder / "environment")
        packages, megabytes = brought(python)
        seconds = first_frame(python, folder)
    print(f"packages beside harcache: {len(packages)} of at most {MOST_PACKAGES}: {', '.join(packages)}")
    print(f"megabytes of all: {megabytes:.0f} of at most {MOST_MEGABYTES}")
    print(f"seconds from starting Python to the first frame: {seconds:.2f} of at most {MOST_SECONDS}")
    if len(packages) > MOST_PACKAGES or megabytes > MOST_MEGABYTES or seconds > MOST_SECONDS:
        sys.exit("the reading layer is above a bound")


def built(folder: Path) -> Path:
    """Build a wheel of the checkout without leaving anything in it."""
    source = folder.with_name("source")
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "data", "videos", "*.egg-info", "__pycache__")
    shutil.copytree(_ROOT, source, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source]
    subprocess.run(command, check=True)
    return next(folder.glob("harcache-*.whl"))


def installed(wheel: Path, folder: Path) -> Path:
    """Install the wheel in a fresh environment, as a user would; return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
    return python


def brought(python: Path) -> tuple[list[str], float]:
    """Return the packages that came with harcache, and the megabytes of all but pip, itself included."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True
    )
    tools = ("pip", "setuptools", "wheel")
    names = [one["name"] for one in json.loads(listed.stdout) if one["name"] not in tools]
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *tools], capture_output=True)
    size = sum(path.stat().st_size for path in python.parents[1].glob("lib/**/*") if path.is_file())
    return [name for name in names if name != "harcache"], size / 1e6


def first_frame(python: Path, folder: Path) -> float:
    """Return the seconds of the fastest run, from before Python is started until a frame is there."""
    store = folder / "rgb.zarr"
    # Elsewhere than in the checkout, whose folders must not be what is imported.
    subprocess.run([python, "-c", _MAKE, store], check=True, cwd=folder)
    seconds = []
    for _ in range(_RUNS):
        start = time.monotonic()
        done = subprocess.run(
            [python, "-c", _READ, store], check=True, cwd=folder, capture_output=True, text=True
        )
        seconds.append(float(done.stdout) - start)
    return min(seconds)


if __name__ == "__main__":
    main()

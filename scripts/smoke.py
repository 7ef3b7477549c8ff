"""Install a wheel on every Python that is found and run the whole job: `python scripts/smoke.py WHEEL`.

Each Python gets a fresh environment with the newest releases of all dependencies. In it, from a folder of its
own, a project is created and four small videos go from index to report; then their network predicts, is
exported, and the caches are read. Ends with 1 at the first command that fails.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SCRIPTS = Path(__file__).resolve().parent
_UV = Path(sys.executable).with_name("uv")
# The OpenCV that needs no display is installed last: Ultralytics asks for the other one.
_EXTRAS, _OPENCV = "export,extract,pipeline,train,yolo", "opencv-python-headless"

# Four of the demo's clips, drawn before `harcache init` would draw all of them.
_DRAW = """
from pathlib import Path
from harcache.pipeline.datasets.demo import DemoSpec, generate_demo
generate_demo(Path("videos/demo"), DemoSpec(performers=(1, 3), cameras=1, actions=(5, 11)), workers=1)
"""
# Networks that train in seconds.
_SHRINK = """
from pathlib import Path
import yaml
params = yaml.safe_load(Path("params.yaml").read_text())
training = params["training"]["demo"]
training["sample"] = {"clip_len": 8, "rgb_frames": 4}
training["model"] |= {"width": 8, "pose_blocks": [1, 1, 1]}
for network in ("pose", "rgb", "epam"):
    training[network] |= {"epochs": 1, "batch_size": 2}
Path("params.yaml").write_text(yaml.safe_dump(params))
"""
_READ = """
import zarr
from harcache import cache
store = cache.open("data/demo/rgb.zarr")
frames = store.frames(store.ids[0])
assert (zarr.open("data/demo/rgb.zarr")["frames"][: len(frames)] == frames).all()
print(len(store.ids), "clips read,", "zarr", zarr.__version__)
"""
_NETWORK = "data/demo/training/epam/network.pt"


def main() -> None:
    """Run the job on every Python that ``pythons.sh`` finds."""
    wheel = Path(sys.argv[1]).resolve()
    found = subprocess.run(
        ["sh", _SCRIPTS / "pythons.sh"], check=True, capture_output=True, text=True
    ).stdout.split()
    for python in found:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="harcache-smoke-") as folder:
            _install(python, wheel, Path(folder) / "environment")
            installed = time.monotonic()
            _run_the_job(Path(folder) / "environment", Path(folder) / "lab")
        end = time.monotonic()
        print(f"{python}: installed in {installed - start:.0f} s, index to report in {end - installed:.0f} s")


def _install(python: str, wheel: Path, environment: Path) -> None:
    into = [_UV, "pip", "install", "--quiet", "--python", environment / "bin" / "python"]
    # Elsewhere than in the checkout, whose [tool.uv] a user of the wheel does not have.
    elsewhere = environment.parent
    _run([_UV, "venv", "--quiet", "--python", python, environment], elsewhere)
    _run([*into, f"harcache[{_EXTRAS}] @ {wheel.as_uri()}"], elsewhere)
    _run([*into, "--reinstall-package", _OPENCV, _OPENCV], elsewhere)
    requirements = _run([environment / "bin" / "harcache", "check", "--mmpose"], elsewhere).strip()
    _run([*into, "--no-deps", "--requirements", requirements], elsewhere)


def _run_the_job(environment: Path, project: Path) -> None:
    programs = environment / "bin"
    project.mkdir()
    for command in (
        [programs / "python", "-c", _DRAW],
        [programs / "harcache", "init", "--demo"],
        [programs / "python", "-c", _SHRINK],
        [programs / "harcache", "check", "--params", "params.yaml"],
        [programs / "dvc", "repro", "--quiet", "report@demo"],
        [programs / "harcache", "predict", "videos/demo", "--checkpoint", _NETWORK, "--json"],
        [programs / "harcache", "export", _NETWORK, "network.onnx"],
        [programs / "python", "-c", _READ],
    ):
        _run(command, project, programs)


def _run(command: list[object], folder: Path, programs: Path | None = None) -> str:
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    # One process, whose threads are as many as there are cores: four clips need no workers.
    own |= {"HARCACHE_WORKERS": "0", "DVC_NO_ANALYTICS": "1"}
    if programs is not None:
        own["PATH"] = f"{programs}{os.pathsep}{own['PATH']}"
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=own, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)[:300]}: ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()

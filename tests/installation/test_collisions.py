"""Modules and folders of a user's own beside an installed harcache: neither breaks the other."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harcache.benchmarks.footage import make_footage
from harcache.pipeline.clips import Clip, write_classes, write_manifest
from tests.installation.environments import editable_environment, environment_of, light_environment
from tests.projects import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# What a researcher's folder may hold: files by name, and what of it their own program imports.
_CASES = {
    "cache.py": (("cache.py",), "cache"),
    "cache folder": (("cache/data.txt", "cache/tools.py"), "cache.tools"),
    "pipeline.py": (("pipeline.py",), "pipeline"),
    "pipeline package": (("pipeline/__init__.py", "pipeline/steps.py"), "pipeline.steps"),
    "models package": (("models/__init__.py", "models/net.py"), "models.net"),
    "models folder": (("models/net.py",), "models.net"),
    "stages and cli.py": (("stages/first.py", "cli.py"), "stages.first, cli"),
    "benchmarks folder": (("benchmarks/speed.py",), "benchmarks.speed"),
}
# A loader's batch comes from forked processes, so that they too have to import everything.
_PROGRAM = """
import sys
sys.path.insert(0, "")
import {own}
import zarr
assert zarr.open("data/demo/rgb.zarr")["frames"][0].shape == (224, 224, 3)
from harcache import cache
rgb, heatmaps = (cache.open(f"data/demo/{{name}}.zarr") for name in ("rgb", "heatmaps"))
assert rgb.frames(rgb.ids[0]).shape == (8, 224, 224, 3)
from harcache.cache import ClipDataset, ClipLoader
clips = [(id, 0) for id in rgb.ids]
dataset = ClipDataset(clips, rgb=rgb, heatmaps=heatmaps, train=True, clip_len=6, rgb_frames=2)
batch = next(iter(ClipLoader(dataset, 2, workers=1)))
assert batch["rgb"].shape == (2, 2, 224, 224, 3)
for name in "{own}".split(", "):
    assert sys.modules[name].OWN == name
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two cached clips."""
    project = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, project / name)
    data = project / "data" / "demo"
    data.mkdir(parents=True)
    ids = [clip.id for clip in make_footage(data, 2, 8)]
    write_manifest(data / "manifest.csv", [_clip(id) for id in ids])
    write_classes(data / "classes.csv", {"xsub": ("walk",)})
    return project


def _clip(id: str) -> Clip:
    return Clip(id, f"{id}.mp4", 0, 8, 224, 224, 30.0, 1, 0, digest="0" * 32, labels=(("xsub", 0),))


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that harcache is installed in."""
    folder = tmp_path_factory.mktemp(request.param) / "venv"
    return light_environment(folder, wheel) if request.param == "wheel" else editable_environment(folder)


@pytest.mark.parametrize("python_path", [None, "."], ids=["", "PYTHONPATH=."])
@pytest.mark.parametrize("case", _CASES)
def test_modules_of_ones_own_work_beside_harcache(
    installed: Path, project: Path, tmp_path: Path, case: str, python_path: str | None
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(project, folder)
    files, own = _CASES[case]
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(f'OWN = "{file.removesuffix(".py").replace("/", ".")}"\n')
    environment = environment_of(installed, tmp_path)
    if python_path is not None:
        environment["PYTHONPATH"] = python_path
    for command in (["python", "-c", _PROGRAM.format(own=own)], ["harcache", "cache", "info", "demo"]):
        command[0] = os.fspath(installed / "bin" / command[0])
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "rgb.zarr" in done.stdout

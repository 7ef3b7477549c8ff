"""Projects away from the repository, of an installed wheel: the repository's own digests, nothing else."""

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from harcache.commands.inspect import digests, total
from harcache.pipeline.datasets.demo import DemoSpec, generate_demo
from harcache.pipeline.params import load_params
from harcache.pipeline.work.engine import Engine
from harcache.stages import crop, detect, heatmap, index, pose, rgb
from harcache.stages.shared.workspace import Workspace
from tests.installation.environments import environment_of, light_environment
from tests.projects import ROOT
from tests.projects import digests as digests_of_files

# Eight stages, each a process that loads PyTorch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_FEW = DemoSpec(performers=(1, 3), cameras=1, actions=(5, 11))
_PROJECTS = {"first": ("heatmap@demo", "rgb@demo"), "second": ("detect@demo",)}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that the wheel is installed in."""
    return light_environment(tmp_path_factory.mktemp("installed") / "venv", wheel)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the demo's clips."""
    videos = tmp_path_factory.mktemp("drawn") / "videos"
    generate_demo(videos / "demo", _FEW, workers=1)
    return videos


@pytest.fixture(scope="module")
def folder(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two demo projects to be, which hold their videos already."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in _PROJECTS:
        shutil.copytree(videos, folder / name / "videos")
    return folder


def _start(installed: Path, folder: Path, command: Sequence[str]) -> "subprocess.Popen[str]":
    environment = environment_of(installed, folder.parent) | {"HARCACHE_WORKERS": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)  # type: ignore[call-overload]


def _said(process: "subprocess.Popen[str]") -> str:
    said, errors = process.communicate()
    assert process.returncode == 0, said + errors
    return said


def _written(installed: Path) -> dict[Path, int]:
    """When each file of the environment, and of the packages that it borrows, was written; not byte code."""
    packages = (installed, Path(sysconfig.get_path("purelib")))
    return {
        path: path.lstat().st_mtime_ns
        for folder in packages
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts and not path.is_dir()
    }


@pytest.fixture(scope="module")
def built(installed: Path, folder: Path) -> dict[Path, int]:
    """Two projects, created, then built at the same time; returns what the environment held before."""
    before = _written(installed)
    for name in _PROJECTS:
        _said(_start(installed, folder, ["harcache", "init", name, "--demo"]))
    building = [
        _start(installed, folder / name, ["dvc", "repro", *stages]) for name, stages in _PROJECTS.items()
    ]
    for process in building:
        _said(process)
    return before


@pytest.fixture(scope="module")
def wanted(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digest of each clip that the repository's code and parameters make."""
    params = load_params(ROOT / "params.yaml", dataset="demo")
    workspace = Workspace.under(tmp_path_factory.mktemp("repository"), "demo", videos)
    with Engine(workers=0) as engine:
        for stage in (index, detect, pose, crop, heatmap, rgb):
            stage.run(params, workspace, engine)
    return digests(workspace)


def test_the_commands_are_those_of_the_wheel(installed: Path, folder: Path) -> None:
    script = "import harcache.cli, harcache.models; print(harcache.cli.__file__, harcache.models.__file__)"
    said = _said(_start(installed, folder, [str(installed / "bin" / "python"), "-c", script]))
    assert all(Path(path).is_relative_to(installed) for path in said.split())


def test_a_project_has_the_digests_of_the_repositorys_demo(
    installed: Path, folder: Path, built: dict[Path, int], wanted: dict[str, str]
) -> None:
    assert (folder / "first" / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    inside = folder / "first" / "videos" / "demo"
    found = json.loads(_said(_start(installed, inside, ["harcache", "cache", "digest", "demo", "--json"])))
    assert len(wanted) == 4
    assert (found["clips"], found["digest"]) == (wanted, total(wanted))


def test_two_projects_that_are_built_at_once_do_not_see_each_other(
    folder: Path, built: dict[Path, int]
) -> None:
    parts = {name: digests_of_files(folder / name / "data" / "demo" / "detections") for name in _PROJECTS}
    assert parts["first"] == parts["second"] != {}
    assert not (folder / "second" / "data" / "demo" / "poses").exists()


def test_nothing_is_written_into_the_installation(installed: Path, built: dict[Path, int]) -> None:
    after = _written(installed)
    assert {path for path, time in after.items() if built.get(path) != time} == set()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_installation_works(installed: Path, folder: Path, built: dict[Path, int]) -> None:
    for path in [installed, *installed.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o555)
    try:
        _said(_start(installed, folder / "first", ["harcache", "detect", "demo"]))
    finally:
        for path in [installed, *installed.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)

"""`harcache check` names what is installed, and for each dataset what is missing and what brings it."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import yaml

from harcache.cli import main
from harcache.commands import check as checks
from harcache.pipeline.base.layers import LAYERS
from tests.projects import ROOT


def _run(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, ["check", *arguments])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped params.yaml, in which commands run."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARCACHE_WEIGHTS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def _change(project: Path, **sections: dict[str, Any]) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    for name, section in sections.items():
        content["datasets"]["demo"][name] = section
    (project / "params.yaml").write_text(yaml.safe_dump(content))


def test_an_installation_that_has_all_lacks_nothing(project: Path) -> None:
    told = _run()
    assert told.exit_code == 0
    assert f"numpy {np.__version__}" in told.output
    assert "demo: nothing is missing" in told.output


def test_the_same_is_told_to_programs(project: Path) -> None:
    found = json.loads(_run("--json").stdout)
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers.keys() == LAYERS.keys()
    assert layers["base"]["versions"]["zarr"] == metadata.version("zarr")
    assert layers["train"]["missing"] == []
    assert found["datasets"] == {"demo": []}
    assert found["devices"]["cores"] >= 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("ultralytics", "detect.backend 'ultralytics' needs ultralytics; run: pip install 'harcache[yolo]'"),
        ("mmpose", "pose.backend 'mmpose' needs mmpose; run: pip install --no-deps -r \"$(harcache check"),
        ("av", "its extraction needs av; run: pip install 'harcache[extract]'"),
        ("lightning_fabric", "its training needs lightning-fabric; run: pip install 'harcache[train]'"),
    ],
)
def test_what_a_dataset_needs_and_is_not_installed_is_named_with_its_command(
    project: Path, monkeypatch: pytest.MonkeyPatch, module: str, line: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    told = _run()
    assert told.exit_code == 1
    assert line in told.output
    assert "Error: something is missing for demo; the lines above name what to do" in told.output


def test_what_no_dataset_needs_may_be_missing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bokeh", None)
    told = _run()
    assert told.exit_code == 0
    assert "missing: bokeh; run: pip install 'harcache[dashboard]'" in told.output


def test_weights_that_are_nowhere_are_missing_and_public_ones_are_to_be_fetched(project: Path) -> None:
    detect = yaml.safe_load((project / "params.yaml").read_text())["datasets"]["demo"]["detect"]
    _change(project, detect=detect | {"weights": "mine.pt"})
    told = _run()
    assert told.exit_code == 1
    assert "weights 'mine.pt' are not in" in told.output
    (project / "mine.pt").touch()
    assert _run("--weights-dir", str(project)).exit_code == 0
    _change(project, detect=detect | {"weights": "yolo11n.pt"})
    told = _run()
    assert told.exit_code == 0
    assert "to be fetched at first use: https://" in told.output
    assert not (project / "cache").exists()


def test_files_of_boxes_that_are_not_there_are_missing(project: Path) -> None:
    _change(project, detect={"backend": "boxes", "source": "boxes.csv"})
    assert "detect.source 'boxes.csv' is not there" in _run().output
    (project / "boxes.csv").touch()
    assert _run().exit_code == 0


def test_a_dataset_with_a_wrong_parameter_does_not_hide_the_others(project: Path) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["datasets"]["other"] = content["datasets"]["demo"] | {"crop": {"min_scor": 0.1}}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    told = _run()
    assert told.exit_code == 1
    assert "demo: nothing is missing" in told.output
    assert "datasets.other.crop" in told.output


def test_a_folder_without_params_is_checked_for_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run().exit_code == 0
    told = _run("--params", "nowhere.yaml")
    assert told.exit_code == 1
    assert "nowhere.yaml" in told.output


def test_two_packages_of_opencv_are_named_with_the_remedy(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version
    pair = ("opencv-python", "opencv-python-headless")
    monkeypatch.setattr(metadata, "version", lambda name: "5.0" if name in pair else real(name))
    told = _run().output
    assert "opencv-python and opencv-python-headless are both installed" in told
    assert "pip uninstall -y opencv-python opencv-python-headless, then pip install opencv-python" in told


def test_an_opencv_of_which_parts_were_removed_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "load", lambda name: __import__("json"))
    assert "OpenCV is there in parts" in "".join(checks._problems())


def test_mmposes_requirements_are_a_file_that_ships_with_the_package() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harcache", "check", "--mmpose"], capture_output=True, text=True, check=True
    )
    lines = Path(done.stdout.strip()).read_text().splitlines()
    assert any(line.startswith("mmpose==") for line in lines)

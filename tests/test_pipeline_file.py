"""dvc.yaml: what lies outside is watched, and an update of harcache trains nobody's networks again.

A stand-in for the command notes what DVC calls and leaves files; DVC is the real one.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from dvc.repo import Repo

from harcache.pipeline.video.writing import write_video
from tests.projects import ROOT, environment, new_project, succeeded, tiny_params

_STAND_IN = """#!/bin/sh
echo "$*" >> calls.txt
case $1 in
  index) exec {harcache} "$@" ;;
  train) mkdir -p data/$3/training/$2/live data/$3/training/$2/plots
    cd data/$3/training/$2 && date +%s%N | tee network.pt live/metrics.json plots/loss.csv plots/accuracy.csv
    ;;
  detect) mkdir -p data/$2/detections && touch data/$2/failures/detect.csv data/$2/counts/detect.json ;;
  pose) mkdir -p data/$2/poses && touch data/$2/failures/pose.csv data/$2/counts/pose.json ;;
esac
"""
# The training stages as they were before the streams became one stage.
_BEFORE = """
  train_{network}:
    foreach: ${{training}}
    do:
      cmd: exec harcache train {network} ${{key}}
      params:
        - "training.${{key}}.protocol"
        - "training.${{key}}.seed"
        - "training.${{key}}.sample"
        - "training.${{key}}.model"
        - "training.${{key}}.{network}"
      deps:
        - "data/${{key}}/manifest.csv"
        - "data/${{key}}/classes.csv"
        - "data/${{key}}/heatmaps.zarr"
        - "data/${{key}}/rgb.zarr"{streams}
      outs: ["data/${{key}}/training/{network}/network.pt"]
      metrics: ["data/${{key}}/training/{network}/live/metrics.json": {{cache: false}}]
      plots:
        - "data/${{key}}/training/{network}/plots/loss.csv": {{cache: false, x: epoch, y: loss}}
        - "data/${{key}}/training/{network}/plots/accuracy.csv": {{cache: false, x: epoch, y: accuracy}}
"""
_STREAMS = "".join(f'\n        - "data/${{key}}/training/{name}/network.pt"' for name in ("pose", "rgb"))
_NOW = ("train_streams@demo-pose", "train_streams@demo-rgb", "train@demo")


def _new_project(folder: Path) -> Path:
    """Make a project whose commands are stand-ins, except for the index."""
    project = new_project(folder / "project", tiny_params())
    succeeded(project, "git", "init", "--quiet")
    programs = folder / "bin"
    programs.mkdir()
    (programs / "dvc").symlink_to(Path(sys.executable).with_name("dvc"))
    command = programs / "harcache"
    command.write_text(_STAND_IN.format(harcache=Path(sys.executable).with_name("harcache")))
    command.chmod(0o755)
    return project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A new project, its commands stand-ins."""
    return _new_project(tmp_path)


@pytest.fixture(scope="module")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that an earlier version trained in; today's dvc.yaml has taken the place of its own."""
    project = _new_project(tmp_path_factory.mktemp("trained"))
    data = project / "data" / "demo"
    for name in ("manifest.csv", "classes.csv", "heatmaps.zarr/zarr.json", "rgb.zarr/zarr.json"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(name)
    stages = [
        _BEFORE.format(network=name, streams=_STREAMS if name == "epam" else "")
        for name in ("pose", "rgb", "epam")
    ]
    (project / "dvc.yaml").write_text("stages:" + "".join(stages))
    _dvc(project, "repro")
    assert _calls(project) == ["train pose demo", "train rgb demo", "train epam demo"]
    shutil.copy(ROOT / "dvc.yaml", project / "dvc.yaml")
    return project


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """A copy of that project for one test."""
    for folder in (_trained, _trained.with_name("bin")):
        shutil.copytree(folder, tmp_path / folder.name, symlinks=True)
    return tmp_path / _trained.name


def _dvc(project: Path, *arguments: str, **more: str) -> str:
    path = f"{project.with_name('bin')}{os.pathsep}{os.environ['PATH']}"
    command = [project.with_name("bin") / "dvc", *arguments]
    own = environment(project, **more) | {"PATH": path}
    done = subprocess.run(command, cwd=project, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _calls(project: Path) -> list[str]:
    """The commands that were called since the last time that this was asked."""
    path = project / "calls.txt"
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def _networks(project: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in project.glob("data/demo/training/*/network.pt")}


def test_networks_of_an_earlier_version_are_found_in_dvcs_cache_and_not_trained_again(trained: Path) -> None:
    networks = _networks(trained)
    said = _dvc(trained, "repro", "--single-item", *_NOW)
    assert [f"Stage '{name}' is cached - skipping run" in said for name in _NOW] == [True] * 3
    assert (_calls(trained), _networks(trained)) == ([], networks)


def test_whoever_has_the_networks_alone_renames_the_stages_in_dvc_lock(trained: Path) -> None:
    networks = _networks(trained)
    shutil.rmtree(trained / ".dvc" / "cache" / "runs")
    told = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"sed -E -i '(.*?)' dvc\.lock", told, re.DOTALL)
    succeeded(trained, "sed", "-E", "-i", script, "dvc.lock")
    said = _dvc(trained, "repro", "--single-item", *_NOW)
    assert said.count("didn't change, skipping") == 3
    assert (_calls(trained), _networks(trained)) == ([], networks)


def test_the_rename_covers_every_training_stage_of_every_dataset(tmp_path: Path) -> None:
    told = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"sed -E -i '(.*?)' dvc\.lock", told, re.DOTALL)
    before = [
        *("train_pose@a-b_C", "train_rgb@a-b_C", "train_epam@a-b_C", "evaluate@a-b_C"),
        *("train_skeleton@x", "train_resnet@x", "train_amfi@x", "evaluate_amfi@x"),
    ]
    lock = tmp_path / "dvc.lock"
    lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": {name: {"cmd": name} for name in before}}))
    succeeded(tmp_path, "sed", "-E", "-i", script, "dvc.lock")
    assert {v["cmd"]: k for k, v in yaml.safe_load(lock.read_text())["stages"].items()} == dict(
        zip(
            before,
            [
                *("train_streams@a-b_C-pose", "train_streams@a-b_C-rgb", "train@a-b_C", "evaluate@a-b_C"),
                *("train_amfi_streams@x-skeleton", "train_amfi_streams@x-resnet"),
                *("train_amfi@x", "evaluate_amfi@x"),
            ],
            strict=True,
        )
    )


def test_weights_that_change_outside_of_the_project_have_their_stage_run_again(
    project: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["datasets"]["demo"]["index"] = {"layout": "folder"}
    content["datasets"]["demo"]["detect"]["weights"] = "mine.pt"
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    videos = project / "videos" / "demo"
    videos.mkdir(parents=True)
    write_video(videos / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 2, fps=30)
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "mine.pt").write_text("one")
    called = {}
    for state in ("first", "same", "changed", "same again"):
        if state == "changed":
            (weights / "mine.pt").write_text("two")
        _dvc(project, "repro", "pose@demo", HARCACHE_WEIGHTS_DIR=str(weights))
        called[state] = _calls(project)
    everything = ["index demo", "detect demo", "pose demo"]
    assert called == {
        "first": everything,
        "same": ["index demo"],
        "changed": ["index demo", "detect demo"],
        "same again": ["index demo"],
    }


@pytest.mark.parametrize("name", ["a-b", "A_b-C", "x2024", "a-pose"])
def test_dvc_knows_datasets_by_the_names_that_parameters_allow(
    project: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tiny_params()
    for section in ("datasets", "training"):
        content[section] = {"demo": content[section]["demo"], name: content[section]["demo"]}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(project)
    stages = {stage.addressing: stage for stage in Repo(str(project)).index.stages}
    for stage in (f"index@{name}", f"train_streams@{name}-pose", f"train@{name}", f"report@{name}"):
        assert name in stages[stage].cmd
    (params,) = [d for d in stages[f"train_streams@{name}-rgb"].deps if d.def_path == "params.yaml"]
    assert f"training.{name}.rgb" in params.params

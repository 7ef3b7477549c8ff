"""Videos to metrics by `dvc repro`, with the DVC files of the repository, in a project of its own."""

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from harcache import cache
from harcache.pipeline.datasets.demo import DemoSpec, generate_demo
from harcache.pipeline.params import load_params
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import Counts
from harcache.stages import crop, detect, heatmap, index, pose, rgb
from harcache.stages.shared.workspace import Workspace
from tests import projects
from tests.projects import EXTRACTION, run, succeeded

# Every stage is a process of its own, which loads PyTorch; the builds here take some twenty of them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

_MODULES = (index, detect, pose, crop, heatmap, rgb)
_STREAMS = {"train_streams@demo-pose", "train_streams@demo-rgb"}
_STAGES = _STREAMS | {f"{name}@demo" for name in (*EXTRACTION, "train", "evaluate", "report")}
_SPEC = DemoSpec(performers=(1, 2, 3), cameras=1, actions=(5, 6, 11))
_LATE = "S003C001P002R001A006"
_PIXELS = {"rgb.zarr": ["frames"], "heatmaps.zarr": ["volume", "keypoints"]}
_STAGE_LINE = re.compile(
    r"^(?:Running stage '(?P<ran>.+)':|Stage '(?P<skipped>.+)' didn't change, skipping)$"
)
# What DVC links anew, or the commands keep for themselves; all else is to stay untouched by a second run.
_INDEX_FILES = {
    "manifest.csv",
    "classes.csv",
    "failures/index.csv",
    "counts/index.json",
    "inputs/detect.json",
    "inputs/pose.json",
    ".lock",
}

# What a user's own program may do: nothing of this project is named.
_READ_BY_ZARR = """
import zarr

import hashlib, json, sys

group = zarr.open(sys.argv[1], mode="r")
clips = zip(group["clip_id"][:], group["start"][:], group["length"][:])
print(json.dumps([
    [[name, str(clip)], hashlib.blake2b(group[name][a:a + n].tobytes(), digest_size=16).hexdigest()]
    for clip, a, n in clips
    for name in sys.argv[2:]
]))
"""


@dataclass(frozen=True)
class _Build:
    """What a run of DVC said, and what it left."""

    ran: set[str]
    skipped: set[str]
    files: dict[str, tuple[int, str]]  # under data/demo: time of change and digest
    pixels: dict[tuple[str, str], str]  # (array, clip): digest


def _build(project: Path, *targets: str) -> _Build:
    lines = succeeded(project, "dvc", "repro", *targets).splitlines()
    stages = [found for line in lines if (found := _STAGE_LINE.match(line))]
    ran, skipped = ({found[kind] for found in stages if found[kind]} for kind in ("ran", "skipped"))
    return _Build(ran, skipped, projects.files(project / "data" / "demo"), _pixels(project / "data" / "demo"))


def _pixels(data: Path) -> dict[tuple[str, str], str]:
    stores = {name: cache.open(data / name) for name in _PIXELS}
    return {
        (array, clip): projects.digest(stores[name].read(array, clip).tobytes())
        for name, arrays in _PIXELS.items()
        for array in arrays
        for clip in stores[name].ids
    }


def _video(project: Path, clip: str) -> Path:
    return project / "videos" / "demo" / f"{clip}_rgb.mp4"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Git repository with the shipped DVC files, tiny parameters, and eight of nine videos."""
    project = projects.new_project(tmp_path_factory.mktemp("dvc") / "project", projects.tiny_params())
    generate_demo(project / "videos" / "demo", _SPEC, workers=1)
    _video(project, _LATE).rename(project.with_name("late.mp4"))
    projects.commit_all(project)
    return project


@pytest.fixture(scope="module")
def first(project: Path) -> _Build:
    """The first `dvc repro`."""
    return _build(project)


@pytest.fixture(scope="module")
def second(project: Path, first: _Build) -> _Build:
    """The same again."""
    return _build(project)


@pytest.fixture(scope="module")
def grown(project: Path, second: _Build) -> _Build:
    """The stores after the ninth video came."""
    project.with_name("late.mp4").rename(_video(project, _LATE))
    return _build(project, "heatmap@demo", "rgb@demo")


def test_one_repro_goes_from_videos_to_metrics(project: Path, first: _Build) -> None:
    metrics = json.loads((project / "metrics" / "demo.json").read_text())
    assert first.ran == _STAGES
    assert set(metrics) == {
        "clips",
        "detect",
        "pose",
        "top1",
        "top5",
        "mean_class",
        "parameters",
        "multiply_adds",
        "test",
        "flags",
    }
    assert metrics["clips"] == {stage: {"ok": 8, "skipped": 0, "failed": 0} for stage in EXTRACTION}
    assert set(metrics["detect"]) == {"recall", "precision"}
    assert set(metrics["pose"]) == {"pck"}
    assert set(metrics["top1"]) == {"epam", "pose", "rgb", "score_fusion", "pose_in_object_pairs"}
    assert all(0 <= value <= 1 for value in metrics["top1"].values())
    evaluation = project / "data" / "demo" / "evaluation"
    assert {path.name for path in evaluation.iterdir()} == {"scores.npz", "tables", "pictures"}
    # The shipped weights find the figures: one epoch says nothing about the networks after them.
    assert min(*metrics["detect"].values(), *metrics["pose"].values()) > 0.8


def test_metrics_and_plots_are_what_dvc_shows(project: Path, first: _Build) -> None:
    shown = json.loads(succeeded(project, "dvc", "metrics", "show", "--json"))
    metrics = json.loads((project / "metrics" / "demo.json").read_text())
    assert shown[""]["data"]["metrics/demo.json"]["data"] == metrics
    plots = succeeded(project, "dvc", "plots", "show", "--out", str(project.with_name("plots")))
    page = Path(plots.strip().removeprefix("file://")).read_text()
    assert all(name in page for name in ("loss.csv", "accuracy.csv", "demo-predictions.csv"))


def test_only_the_lock_is_new_to_git(project: Path, second: _Build) -> None:
    assert succeeded(project, "git", "status", "--porcelain").split("\n") == ["?? dvc.lock", ""]


def test_a_second_repro_looks_at_the_videos_and_does_nothing_else(first: _Build, second: _Build) -> None:
    assert (second.ran, second.skipped) == ({"index@demo"}, _STAGES - {"index@demo"})
    assert second.files.keys() == first.files.keys()
    for name, (time, digest) in second.files.items():
        if name in _INDEX_FILES:
            assert name == ".lock" or digest == first.files[name][1]
        else:
            assert (time, digest) == first.files[name], name


def test_a_new_video_leaves_what_was_there(second: _Build, grown: _Build) -> None:
    new = {key: digest for key, digest in grown.pixels.items() if key not in second.pixels}
    assert new.keys() == {("frames", _LATE), ("volume", _LATE), ("keypoints", _LATE)}
    assert second.pixels.items() <= grown.pixels.items()
    shards = {name for name in second.files if re.search(r"/c\.\d", name) and not _is_index_array(name)}
    assert len(shards) >= 6
    assert all(grown.files[name] == second.files[name] for name in shards)


def _is_index_array(name: str) -> bool:
    return name.split("/")[1] not in ("frames", "volume", "keypoints")


def test_zarr_alone_reads_the_stores(project: Path, grown: _Build) -> None:
    found = {}
    for name, arrays in _PIXELS.items():
        done = run(project, sys.executable, "-c", _READ_BY_ZARR, f"data/demo/{name}", *arrays)
        assert (done.returncode, done.stderr) == (0, "")
        found |= {tuple(key): digest for key, digest in json.loads(done.stdout)}
    assert found == grown.pixels


def test_detections_and_poses_come_back_from_dvcs_cache(project: Path, grown: _Build) -> None:
    before = projects.digests(project / "data" / "demo")
    for name in ("detections", "poses"):
        shutil.rmtree(project / "data" / "demo" / name)
    succeeded(project, "dvc", "checkout", "detect@demo", "pose@demo")
    assert projects.digests(project / "data" / "demo") == before


def test_a_bad_video_stops_dvc_with_its_name_until_it_is_gone(project: Path, grown: _Build) -> None:
    bad = _video(project, "S001C001P001R001A007")
    bad.write_text("no video\n" * 50)
    stopped = run(project, "dvc", "repro", "rgb@demo")
    assert stopped.returncode != 0
    reason = r"^Error: index: 1 of 10 failed, more than 1\.0%; first S001C001P001R001A007: .* is no video"
    assert re.search(reason, stopped.stderr, re.MULTILINE)
    assert "failed to reproduce 'index@demo'" in stopped.stderr
    bad.unlink()
    mended = _build(project, "rgb@demo")
    assert mended.ran == {"index@demo"}
    assert mended.pixels == grown.pixels


@pytest.fixture(scope="module")
def many_videos(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More videos than a part of detections takes, cut from the demo's, with figures in them."""
    root = tmp_path_factory.mktemp("many")
    projects.cut_videos(project / "videos" / "demo", root / "videos" / "demo", count=36, frames=3)
    return root


def test_dask_workers_make_the_same_bytes_as_one_process(many_videos: Path) -> None:
    content = projects.tiny_params()
    content["datasets"]["demo"]["index"] = {"layout": "folder"}
    for kind in ("heatmap", "rgb"):
        content["datasets"]["demo"][kind]["shard_rows"] = 30
    projects.write_params(many_videos, content)
    params = load_params(many_videos / "params.yaml", dataset="demo")
    built = {}
    for workers in (0, 2):
        workspace = Workspace.under(many_videos / str(workers), "demo", many_videos / "videos")
        with Engine(workers) as engine:
            ended = [stage.run(params, workspace, engine) for stage in _MODULES]
        assert ended == [Counts(ok=36, skipped=0, failed=0)] * len(_MODULES)
        built[workers] = projects.digests(workspace.data)
    several = {"detections/part-00001.h5", "poses/part-00001.h5", "crops.csv"}
    assert several < built[0].keys()
    assert sum(name.startswith("rgb.zarr/frames/c.") for name in built[0]) == 4
    assert built[2] == built[0]

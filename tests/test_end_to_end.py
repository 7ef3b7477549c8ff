"""Videos to metrics by `dvc repro`, with the DVC files of the repository, in a project of its own."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
import yaml

import cache
from pipeline.datasets.demo import DemoSpec, generate_demo
from pipeline.engine import Engine
from pipeline.outcomes import Counts
from pipeline.params import load_params
from pipeline.video import read_frames, write_video
from stages import crop, detect, heatmap, index, pose, rgb
from stages.workspace import Workspace

# Every stage is a process of its own, which loads PyTorch; the builds here take some twenty of them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

_ROOT = Path(__file__).parents[1]
_SHIPPED = ("dvc.yaml", ".dvcignore", ".dvc/config", ".dvc/.gitignore", ".gitignore")
_EXTRACTION = ("index", "detect", "pose", "crop", "heatmap", "rgb")
_MODULES = (index, detect, pose, crop, heatmap, rgb)
_STAGES = {f"{name}@demo" for name in (*_EXTRACTION, "train_pose", "train_rgb", "train_epam", "evaluate")}
_SPEC = DemoSpec(performers=(1, 2, 3), cameras=1, actions=(5, 6, 11))
_LATE = "S003C001P002R001A006"
_PIXELS = {"rgb.zarr": ["frames"], "heatmaps.zarr": ["volume", "keypoints"]}
_STAGE_LINE = re.compile(
    r"^(?:Running stage '(?P<ran>.+)':|Stage '(?P<skipped>.+)' didn't change, skipping)$"
)
# What DVC links anew, or the commands keep for themselves; all else is to stay untouched by a second run.
_INDEX_FILES = {"manifest.csv", "classes.csv", "failures/index.csv", "counts/index.json", ".lock"}

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


def _environment(project: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HARCACHE_", "DVC_"))}
    folders = {
        f"DVC_{kind}_DIR": str(project.with_name(f"dvc-{kind}").absolute())
        for kind in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG")
    }
    scripts = str(Path(sys.executable).parent)
    return own | folders | {"HARCACHE_WORKERS": "0", "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}


def _run(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=project, env=_environment(project), capture_output=True, text=True)


def _succeeded(project: Path, *command: str) -> str:
    done = _run(project, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _build(project: Path, *targets: str) -> _Build:
    lines = _succeeded(project, "dvc", "repro", *targets).splitlines()
    stages = [found for line in lines if (found := _STAGE_LINE.match(line))]
    ran, skipped = ({found[kind] for found in stages if found[kind]} for kind in ("ran", "skipped"))
    return _Build(ran, skipped, _files(project / "data" / "demo"), _pixels(project / "data" / "demo"))


def _files(folder: Path) -> dict[str, tuple[int, str]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, _digest(path.read_bytes()))
        for path in paths
    }


def _pixels(data: Path) -> dict[tuple[str, str], str]:
    stores = {name: cache.open(data / name) for name in _PIXELS}
    return {
        (array, clip): _digest(stores[name].read(array, clip).tobytes())
        for name, arrays in _PIXELS.items()
        for array in arrays
        for clip in stores[name].ids
    }


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _video(project: Path, clip: str) -> Path:
    return project / "videos" / "demo" / f"{clip}_rgb.mp4"


def _tiny_params() -> dict[str, dict[str, dict[str, dict[str, object]]]]:
    content = yaml.safe_load((_ROOT / "params.yaml").read_text())
    demo, training = content["datasets"]["demo"], content["training"]["demo"]
    demo["heatmap"] |= {"size": 32, "shard_rows": 200}
    demo["rgb"] |= {"size": 64, "shard_rows": 200}
    training["sample"] = {"clip_len": 8, "rgb_frames": 4}
    training["model"] |= {"width": 8, "rgb_blocks": [1, 1, 1], "pose_blocks": [1, 1, 1]}
    for network in ("pose", "rgb", "epam"):
        training[network] |= {"epochs": 1, "batch_size": 4}
    return content


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Git repository with the shipped DVC files, tiny parameters, and eight of nine videos."""
    project = tmp_path_factory.mktemp("dvc") / "project"
    for name in _SHIPPED:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_ROOT / name, project / name)
    shutil.copytree(_ROOT / "models" / "weights", project / "models" / "weights")
    (project / "params.yaml").write_text(yaml.safe_dump(_tiny_params()))
    generate_demo(project / "videos" / "demo", _SPEC, workers=1)
    _video(project, _LATE).rename(project.with_name("late.mp4"))
    me = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (["init", "--quiet"], ["add", "--all"], [*me, "commit", "--quiet", "--message", "start"]):
        _succeeded(project, "git", *command)
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
    assert set(metrics) == {"clips", "detect", "pose", "top1"}
    assert metrics["clips"] == {stage: {"ok": 8, "skipped": 0, "failed": 0} for stage in _EXTRACTION}
    assert set(metrics["detect"]) == {"recall", "precision"}
    assert set(metrics["pose"]) == {"pck"}
    assert set(metrics["top1"]) == {"epam", "pose", "rgb", "score_fusion", "pose_in_object_pairs"}
    assert all(0 <= value <= 1 for value in metrics["top1"].values())
    # The shipped weights find the figures: one epoch says nothing about the networks after them.
    assert min(*metrics["detect"].values(), *metrics["pose"].values()) > 0.8


def test_metrics_and_plots_are_what_dvc_shows(project: Path, first: _Build) -> None:
    shown = json.loads(_succeeded(project, "dvc", "metrics", "show", "--json"))
    metrics = json.loads((project / "metrics" / "demo.json").read_text())
    assert shown[""]["data"]["metrics/demo.json"]["data"] == metrics
    plots = _succeeded(project, "dvc", "plots", "show", "--out", str(project.with_name("plots")))
    page = Path(plots.strip().removeprefix("file://")).read_text()
    assert all(name in page for name in ("loss.csv", "accuracy.csv", "demo-predictions.csv"))


def test_only_the_lock_is_new_to_git(project: Path, second: _Build) -> None:
    assert _succeeded(project, "git", "status", "--porcelain").split("\n") == ["?? dvc.lock", ""]


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
        done = _run(project, sys.executable, "-c", _READ_BY_ZARR, f"data/demo/{name}", *arrays)
        assert (done.returncode, done.stderr) == (0, "")
        found |= {tuple(key): digest for key, digest in json.loads(done.stdout)}
    assert found == grown.pixels


def test_detections_and_poses_come_back_from_dvcs_cache(project: Path, grown: _Build) -> None:
    before = _files(project / "data" / "demo")
    for name in ("detections", "poses"):
        shutil.rmtree(project / "data" / "demo" / name)
    _succeeded(project, "dvc", "checkout", "detect@demo", "pose@demo")
    after = _files(project / "data" / "demo")
    assert {name: digest for name, (_, digest) in after.items()} == {
        name: digest for name, (_, digest) in before.items()
    }


def test_a_bad_video_stops_dvc_with_its_name_until_it_is_gone(project: Path, grown: _Build) -> None:
    bad = _video(project, "S001C001P001R001A007")
    bad.write_text("no video\n" * 50)
    stopped = _run(project, "dvc", "repro", "rgb@demo")
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
    sources = sorted((project / "videos" / "demo").glob("*_rgb.mp4"))
    for number in range(36):
        video, start = sources[number % len(sources)], 5 * (number // len(sources))
        frames = list(islice(read_frames(video, start, start + 3 + number % 2), 4))
        (root / "videos" / "demo").mkdir(parents=True, exist_ok=True)
        write_video(root / "videos" / "demo" / f"{number:02}.mp4", frames, fps=30)
    return root


def test_dask_workers_make_the_same_bytes_as_one_process(many_videos: Path) -> None:
    content = _tiny_params()
    content["datasets"]["demo"]["index"] = {"layout": "folder"}
    for kind in ("heatmap", "rgb"):
        content["datasets"]["demo"][kind]["shard_rows"] = 40
    (many_videos / "params.yaml").write_text(yaml.safe_dump(content))
    params = load_params(many_videos / "params.yaml", dataset="demo")
    built = {}
    for workers in (0, 2):
        workspace = Workspace.under(many_videos / str(workers), "demo", many_videos / "videos")
        with Engine(workers) as engine:
            ended = [stage.run(params, workspace, engine) for stage in _MODULES]
        assert ended == [Counts(ok=36, skipped=0, failed=0)] * len(_MODULES)
        built[workers] = {name: digest for name, (_, digest) in _files(workspace.data).items()}
    several = {"detections/part-00001.h5", "poses/part-00001.h5", "crops.csv"}
    assert several < built[0].keys()
    assert sum(name.startswith("rgb.zarr/frames/c.") for name in built[0]) == 4
    assert built[2] == built[0]

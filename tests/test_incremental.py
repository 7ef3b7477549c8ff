"""One clip that comes, changes or goes among 200 touches one part of each store, with DVC around it."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from harcache.pipeline.clips import read_manifest
from harcache.pipeline.datasets.demo import DemoSpec, generate_demo
from harcache.pipeline.work.parts import read_records
from tests import projects
from tests.projects import EXTRACTION, RECORDS, succeeded

# Five times all six stages with the real networks, each a process that loads PyTorch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_CLIPS = 200
_ROWS = 40  # a shard: 20 clips of two frames
_ONE_EACH = {"detect": 1, "pose": 1, "heatmap": 1, "rgb": 1}
_NEW, _CHANGED, _GONE = "150a", "070", "030"


@dataclass(frozen=True)
class _State:
    """What a build left: what each part's files are known by, the part of each clip, and the parts made."""

    files: Mapping[str, Mapping[int, list[tuple[str, object]]]]
    clips: Mapping[str, Mapping[str, int]]
    made: Mapping[str, int]


def _build(project: Path) -> _State:
    said = succeeded(project, "dvc", "repro")
    data = project / "data" / "demo"
    files, clips = {}, {}
    for name, folder in RECORDS.items():
        records = read_records(data / folder)
        files[name] = {
            record.part: [_known_by(data / name / file) for file, _, _ in record.files] for record in records
        }
        clips[name] = {outcome.id: record.part for record in records for outcome in record.outcomes}
    names = {clip.id for clip in read_manifest(data / "manifest.csv")}
    assert all(found.keys() == names for found in clips.values())
    made = {stage: int(count) for stage, count in re.findall(r"^(\w+): (\d+) parts,", said, re.MULTILINE)}
    return _State(files, clips, made)


def _known_by(path: Path) -> tuple[str, object]:
    """Name, inode and time; digest where DVC links files anew: those it caches, once their stage has run."""
    if path.suffix == ".h5":
        return path.name, projects.digest(path.read_bytes())
    return path.name, (path.stat().st_ino, path.stat().st_mtime_ns)


def _video(project: Path, clip: str) -> Path:
    return project / "videos" / "demo" / f"{clip}.mp4"


def _touched(before: _State, after: _State) -> dict[str, set[int]]:
    """The parts of each folder that are new, gone or not the same files any more."""
    return {
        name: {
            part
            for part in before.files[name].keys() | after.files[name].keys()
            if before.files[name].get(part) != after.files[name].get(part)
        }
        for name in RECORDS
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 videos of two frames, and one more aside; DVC's cache is linked, so that its files are shared."""
    root = tmp_path_factory.mktemp("incremental")
    generate_demo(root / "demo", DemoSpec(performers=(1, 2, 3), cameras=1, actions=(5, 6, 11)), workers=1)
    content = projects.tiny_params()
    content["datasets"]["demo"]["index"] = {"layout": "folder"}
    content["datasets"]["demo"]["detect"]["image_size"] = 128
    content["datasets"]["demo"]["heatmap"] |= {"size": 16, "shard_rows": _ROWS}
    content["datasets"]["demo"]["rgb"] |= {"size": 32, "shard_rows": _ROWS}
    content["training"] = {}
    project = projects.new_project(root / "project", content)
    projects.cut_videos(root / "demo", project / "videos" / "demo", count=_CLIPS + 2, frames=2)
    _video(project, f"{_CLIPS:03}").rename(root / "new.mp4")
    _video(project, f"{_CLIPS + 1:03}").rename(root / "changed.mp4")
    projects.commit_all(project)
    succeeded(project, "dvc", "config", "cache.type", "hardlink")
    return project


@pytest.fixture(scope="module")
def first(project: Path) -> _State:
    return _build(project)


@pytest.fixture(scope="module")
def added(project: Path, first: _State) -> _State:
    shutil.copy(project.with_name("new.mp4"), _video(project, _NEW))
    return _build(project)


@pytest.fixture(scope="module")
def changed(project: Path, added: _State) -> _State:
    shutil.copy(project.with_name("changed.mp4"), _video(project, _CHANGED))
    return _build(project)


@pytest.fixture(scope="module")
def removed(project: Path, changed: _State) -> _State:
    _video(project, _GONE).unlink()
    return _build(project)


def test_the_stores_are_of_ten_shards_and_the_annotations_of_seven_parts(first: _State) -> None:
    assert first.made == {"detect": 7, "pose": 7, "heatmap": 10, "rgb": 10}


def test_an_added_clip_makes_one_new_part_and_touches_no_other(first: _State, added: _State) -> None:
    assert _touched(first, added) == {name: {added.clips[name][_NEW]} for name in RECORDS}
    assert all(added.clips[name][_NEW] not in first.files[name] for name in RECORDS)
    assert added.made == _ONE_EACH


def test_a_changed_clip_has_its_own_part_made_again_and_no_other(added: _State, changed: _State) -> None:
    assert _touched(added, changed) == {name: {added.clips[name][_CHANGED]} for name in RECORDS}
    assert changed.made == _ONE_EACH


def test_a_removed_clip_has_its_own_part_made_again_and_no_other(changed: _State, removed: _State) -> None:
    assert _touched(changed, removed) == {name: {changed.clips[name][_GONE]} for name in RECORDS}
    assert removed.made == _ONE_EACH


def test_dvc_holds_everything_for_up_to_date_but_what_looks_at_the_videos(
    project: Path, removed: _State
) -> None:
    said = succeeded(project, "dvc", "status")
    assert said.splitlines() == ["index@demo:", "\talways changed"]


def test_dvcs_cache_shares_its_files_and_brings_them_back_as_they_were(
    project: Path, removed: _State
) -> None:
    data = project / "data" / "demo"
    before = projects.digests(data)
    files = [path for name in ("detections", "poses") for path in (data / name).iterdir()]
    assert len(files) == 2 * 8 * 2
    assert all(path.stat().st_nlink > 1 for path in files)
    for name in ("detections", "poses"):
        shutil.rmtree(data / name)
    succeeded(project, "dvc", "checkout", "detect@demo", "pose@demo")
    assert projects.digests(data) == before
    said = succeeded(project, "dvc", "repro")
    assert said.count("didn't change, skipping") == len(EXTRACTION)  # all but the index, and the report
    assert projects.digests(data) == before

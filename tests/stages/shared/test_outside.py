"""What lies outside the project is known by its content: a change is noted, and so is nothing else."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from harcache.models.pretrained import weight_files
from harcache.pipeline.params import (
    DatasetParams,
    GivenBoxesParams,
    ImportedPoseParams,
    KinectPoseParams,
    NoDetectParams,
    PoseParams,
)
from harcache.stages.shared.outside import note_inputs
from harcache.stages.shared.workspace import Workspace
from tests.tiny_demo import PARAMS


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HARCACHE_WEIGHTS_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    return Workspace.under(tmp_path, "demo", tmp_path / "videos", weights_dir=tmp_path / "weights")


def _noted(params: DatasetParams, workspace: Workspace, stage: str = "detect") -> dict[str, str | None]:
    note_inputs(params, workspace)
    return json.loads(workspace.inputs(stage).read_text())


def _with_weights(name: str) -> DatasetParams:
    return replace(PARAMS, detect=replace(PARAMS.detect, weights=name))


def test_shipped_weights_and_configs_are_known_by_name_and_hash(workspace: Workspace) -> None:
    shipped = Path(weight_files.__file__).parents[1] / "weights"
    digests = {
        name: hashlib.sha256((shipped / name).read_bytes()).hexdigest()
        for name in ("demo-yolo.pt", "demo-hrnet.pth", "demo-hrnet.py")
    }
    assert _noted(PARAMS, workspace) == {"weights demo-yolo": digests["demo-yolo.pt"]}
    assert _noted(PARAMS, workspace, "pose") == {
        "weights demo-hrnet": digests["demo-hrnet.pth"],
        "config demo-hrnet": digests["demo-hrnet.py"],
    }


def test_a_changed_file_of_weights_is_noted_and_an_unchanged_one_leaves_the_note_untouched(
    workspace: Workspace, tmp_path: Path
) -> None:
    file = tmp_path / "weights" / "mine.pt"
    params = _with_weights("mine.pt")
    file.write_bytes(b"one")
    first = _noted(params, workspace)
    written = workspace.inputs("detect").stat().st_mtime_ns
    file.touch()
    assert _noted(params, workspace) == first
    assert workspace.inputs("detect").stat().st_mtime_ns == written
    file.write_bytes(b"two")
    assert _noted(params, workspace).keys() == first.keys()
    assert _noted(params, workspace) != first


def test_weights_that_are_nowhere_are_no_error_and_keep_the_digest_that_was_noted(
    workspace: Workspace, tmp_path: Path
) -> None:
    params = _with_weights("mine.pt")
    assert _noted(params, workspace) == {"weights mine.pt": None}
    file = tmp_path / "weights" / "mine.pt"
    file.write_bytes(b"one")
    first = _noted(params, workspace)
    file.unlink()
    assert _noted(params, workspace) == first


def test_public_weights_are_the_same_before_and_after_they_are_fetched(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = hashlib.sha256(b"published").hexdigest()
    monkeypatch.setitem(weight_files._ULTRALYTICS_SHA256, "yolo11n.pt", published)
    params = _with_weights("yolo11n.pt")
    before = _noted(params, workspace)
    (tmp_path / "weights" / "yolo11n.pt").write_bytes(b"published")
    assert _noted(params, workspace) == before == {"weights yolo11n.pt": published}
    (tmp_path / "weights" / "yolo11n.pt").write_bytes(b"a user's own of that name")
    assert _noted(params, workspace) != before


def test_a_damaged_note_is_written_again(workspace: Workspace) -> None:
    first = _noted(PARAMS, workspace)
    for damaged in (b"{", b"[]", b"\xff", b"[" * 100_000):
        workspace.inputs("detect").write_bytes(damaged)
        assert _noted(PARAMS, workspace) == first


def test_boxes_of_another_program_are_known_by_their_content(workspace: Workspace, tmp_path: Path) -> None:
    params = replace(PARAMS, detect=GivenBoxesParams("boxes", "boxes.csv"))
    assert _noted(params, workspace) == {"source boxes.csv": None}
    (tmp_path / "boxes.csv").write_text("clip,frame,x1,y1,x2,y2,score\n")
    first = _noted(params, workspace)
    (tmp_path / "boxes.csv").write_text("clip,frame,x1,y1,x2,y2,score\na,0,1,1,2,2,1\n")
    assert None not in first.values() and _noted(params, workspace) != first


def test_skeletons_are_known_by_their_files_as_the_pose_stage_knows_them(
    workspace: Workspace, tmp_path: Path
) -> None:
    params = replace(PARAMS, detect=NoDetectParams("none"), pose=KinectPoseParams("kinect", "skeletons", 2))
    assert _noted(params, workspace) == {}
    assert _noted(params, workspace, "pose") == {"source skeletons": None}
    (tmp_path / "skeletons").mkdir()
    (tmp_path / "skeletons" / "S001C001P001R001A001.skeleton").write_text("0\n")
    first = _noted(params, workspace, "pose")
    (tmp_path / "skeletons" / "S001C001P001R001A001.skeleton").write_text("0\n\n")
    assert None not in first.values() and _noted(params, workspace, "pose") != first


def test_imported_poses_that_are_damaged_are_left_to_the_pose_stage(
    workspace: Workspace, tmp_path: Path
) -> None:
    params = replace(PARAMS, detect=NoDetectParams("none"), pose=ImportedPoseParams("import", "mine.h5", 2))
    (tmp_path / "mine.h5").write_text("no HDF5")
    assert _noted(params, workspace, "pose") == {"source mine.h5": None}


def test_a_network_that_brings_its_own_structure_has_no_config(workspace: Workspace) -> None:
    pose = PoseParams("ultralytics", "", "yolo11n-pose.pt", False, 2, "float32")
    assert list(_noted(replace(PARAMS, pose=pose), workspace, "pose")) == ["weights yolo11n-pose.pt"]

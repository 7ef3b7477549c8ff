"""Poses that are there already: each clip gets its own, in its video's pixels and frames, or is named."""

import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harcache import cache
from harcache.cache.annotations import read_detections, read_poses, read_positions, write_detections
from harcache.commands import inspect
from harcache.commands.poses import export_poses
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip, write_manifest
from harcache.pipeline.params import (
    DatasetParams,
    HeatmapParams,
    ImportedPoseParams,
    KinectPoseParams,
    NoDetectParams,
)
from harcache.pipeline.skeletons.imported import ImportedPose, write_imported_poses
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import Counts, read_failures
from harcache.pipeline.work.parts import Outcome, publish, read_records
from harcache.stages import crop, detect, heatmap, pose
from harcache.stages.shared.crop_table import read_crops
from harcache.stages.shared.units import CLIPS_PER_PART, part_file
from harcache.stages.shared.workspace import Workspace
from tests.kinect_files import body, write_mat, write_skeleton

_FRAMES = 20


def _clip(id: str, frames: int = _FRAMES, height: int = 240, width: int = 320, video: str = "") -> Clip:
    return Clip(id, video or f"{id}.mp4", 0, frames, height, width, 30.0, 1, 1, "digest")


def _imported(id: str, persons: int = 1, frames: int = _FRAMES, **other: object) -> ImportedPose:
    rng = np.random.default_rng(len(id))
    keypoints = rng.uniform(50, 200, (persons, frames, 17, 2)).astype(np.float32)
    scores = np.full((persons, frames, 17), 0.9, np.float32)
    return ImportedPose(id, keypoints, scores, None, **{"image_size": (240, 320)} | other)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A dataset whose videos are not there: nothing here opens one."""
    monkeypatch.chdir(tmp_path)
    return Workspace.under(tmp_path, "small", tmp_path / "videos", max_failed=1.0, max_skipped=1.0)


def _run(
    workspace: Workspace, params: DatasetParams, source: ImportedPoseParams | KinectPoseParams
) -> tuple[DatasetParams, Counts]:
    """Run detection, without a detector, and the pose stage."""
    params = replace(params, detect=NoDetectParams("none"), pose=source)
    with Engine(workers=0) as engine:
        detect.run(params, workspace, engine)
        return params, pose.run(params, workspace, engine)


def _import(
    workspace: Workspace,
    params: DatasetParams,
    clips: Sequence[Clip],
    poses: Sequence[ImportedPose],
    persons: int = 2,
) -> Counts:
    write_manifest(workspace.manifest, clips)
    write_imported_poses(Path("poses.h5"), poses, {})
    return _run(workspace, params, ImportedPoseParams("import", "poses.h5", persons))[1]


def _reasons(workspace: Workspace) -> Mapping[str, tuple[str, str]]:
    return {id: (status, reason) for id, status, reason in read_failures(workspace.failures("pose"))}


def _keypoints(workspace: Workspace, id: str) -> np.ndarray:
    return read_poses(part_file(workspace.poses, 0), id)[0]


def test_a_clip_gets_the_poses_of_its_id_and_one_without_is_skipped(
    workspace: Workspace, params: DatasetParams
) -> None:
    poses = [_imported("b", 2), _imported("a"), _imported("other")]
    assert _import(workspace, params, [_clip("a"), _clip("b"), _clip("gone")], poses) == Counts(2, 1, 0)
    np.testing.assert_array_equal(_keypoints(workspace, "a"), poses[1].keypoints)
    np.testing.assert_array_equal(_keypoints(workspace, "b"), poses[0].keypoints)
    assert _reasons(workspace) == {"gone": ("skipped", "poses.h5 has no poses of it")}


def test_without_a_detector_every_clip_has_empty_boxes(workspace: Workspace, params: DatasetParams) -> None:
    _import(workspace, params, [_clip("a", 3)], [_imported("a", frames=3)])
    boxes = read_detections(part_file(workspace.detections, 0), "a")
    assert [box.shape for box in boxes] == [(0, 5)] * 3


def test_a_clip_is_also_found_by_its_videos_name_where_that_is_its_own(
    workspace: Workspace, params: DatasetParams
) -> None:
    clips = [
        _clip("wave_one", video="wave/one.avi"),
        _clip("wave_two", video="wave/two.avi"),
        _clip("walk_two", video="walk/two.avi"),
    ]
    assert _import(workspace, params, clips, [_imported("one"), _imported("two")]) == Counts(1, 2, 0)
    assert set(_reasons(workspace)) == {"wave_two", "walk_two"}


def test_a_clip_is_also_found_by_its_videos_path_without_suffix(
    workspace: Workspace, params: DatasetParams, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [_clip(f"{action}__1", video=f"{action}/1.mp4") for action in ("wave", "walk")]
    poses = [_imported("wave/1"), _imported("walk/1", 2), _imported("run/1")]
    assert _import(workspace, params, clips, poses) == Counts(2, 0, 0)
    np.testing.assert_array_equal(_keypoints(workspace, "walk__1"), poses[1].keypoints)
    assert "poses.h5 has poses of 1 more, first 'run/1', which are not used" in capsys.readouterr().err


def test_a_path_that_several_clips_have_is_no_name_of_any(
    workspace: Workspace, params: DatasetParams
) -> None:
    # Two spans of one video, and a video whose name is another clip's id.
    clips = [_clip("one", video="wave/1.mp4"), _clip("two", video="wave/1.mp4"), _clip("x", video="one.mp4")]
    poses = [_imported("one"), _imported("wave/1"), _imported("two")]
    assert _import(workspace, params, clips, poses) == Counts(2, 1, 0)
    assert set(_reasons(workspace)) == {"x"}


def test_poses_that_match_no_clip_are_an_error_with_ids_of_both_sides(
    workspace: Workspace, params: DatasetParams
) -> None:
    clips = [_clip(f"wave__{n}", video=f"wave/{n}.mp4") for n in (1, 2, 3)]
    message = (
        r"pose: none of 3 clips can be used, 3 skipped and 0 failed; first wave__1: poses\.h5 has no poses "
        r"of it; wave__2: .*poses\.h5 has poses of 'Wave-1', 'Wave-2'; the clips are "
        r"'wave__1' \(wave/1\.mp4\), 'wave__2' \(wave/2\.mp4\)"
    )
    with pytest.raises(HarcacheError, match=message):
        _import(workspace, params, clips, [_imported("Wave-1"), _imported("Wave-2"), _imported("Wave-3")])


def test_clips_without_poses_are_an_error_unless_they_are_allowed(
    workspace: Workspace, params: DatasetParams
) -> None:
    strict = replace(workspace, max_skipped=None)
    clips = [_clip("a"), _clip("b"), _clip("c")]
    message = (
        r"pose: 1 of 3 skipped that nobody asked to skip, more than 0\.0%; first 'c'\. poses\.h5 has poses "
        r"of 'a', 'b'; the clips are 'a' \(a\.mp4\), 'b' \(b\.mp4\)\. All are listed in .*pose\.csv: add "
        r"what they lack, or allow it by --max-skipped 0\.34, for dvc by HARCACHE_MAX_SKIPPED=0\.34, or "
        r"for good by max_skipped: 0\.34 in the section pose of params\.yaml"
    )
    with pytest.raises(HarcacheError, match=message):
        _import(strict, params, clips, [_imported("a"), _imported("b")])
    before = part_file(workspace.poses, 0).stat().st_mtime_ns
    allowed = ImportedPoseParams("import", "poses.h5", 2, max_skipped=0.34)
    assert _run(strict, params, allowed)[1] == Counts(2, 1, 0)
    assert _run(replace(strict, max_skipped=0.5), params, replace(allowed, max_skipped=0))[1].skipped == 1
    # How many may be skipped changes nothing that is made.
    assert part_file(workspace.poses, 0).stat().st_mtime_ns == before


def test_clips_that_failed_in_detection_are_not_skipped_unasked(
    workspace: Workspace, params: DatasetParams
) -> None:
    strict = replace(workspace, max_skipped=None)
    write_manifest(workspace.manifest, [_clip("a"), _clip("b")])
    write_imported_poses(Path("poses.h5"), [_imported("a")], {})
    empty = [np.empty((0, 5), np.float32)] * _FRAMES
    workspace.detections.mkdir(parents=True)
    write_detections(workspace.detections / "new", {"a": empty})
    outcomes = [Outcome("a", "ok", "x"), Outcome("b", "failed", "x", "broken")]
    final = part_file(workspace.detections, 0)
    publish(workspace.detections, workspace.detections, 0, outcomes, {workspace.detections / "new": final})
    given = replace(params, detect=NoDetectParams("none"), pose=ImportedPoseParams("import", "poses.h5", 2))
    with Engine(workers=0) as engine:
        assert pose.run(given, strict, engine) == Counts(1, 1, 0)


def test_keypoints_are_scaled_to_the_videos_size(workspace: Workspace, params: DatasetParams) -> None:
    clips = [_clip("scaled", height=480, width=160), _clip("unknown", height=480, width=160)]
    poses = [_imported("scaled"), _imported("unknown", image_size=None)]
    _import(workspace, params, clips, poses)
    expected = poses[0].keypoints * np.array([0.5, 2], np.float32)
    np.testing.assert_array_equal(_keypoints(workspace, "scaled"), expected)
    np.testing.assert_array_equal(_keypoints(workspace, "unknown"), poses[1].keypoints)


def test_some_frames_more_or_less_are_cut_or_missing_and_many_are_an_error(
    workspace: Workspace, params: DatasetParams, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = {"five more": 25, "five less": 15, "six more": 26, "six less": 14}
    poses = [_imported(id, frames=count) for id, count in frames.items()]
    assert _import(workspace, params, [_clip(id) for id in frames], poses) == Counts(2, 0, 2)
    assert "pose: the poses of 2 clips, first 'five more', have up to 5 frames" in capsys.readouterr().err
    np.testing.assert_array_equal(_keypoints(workspace, "five more"), poses[0].keypoints[:, :_FRAMES])
    keypoints, scores = read_poses(part_file(workspace.poses, 0), "five less")
    np.testing.assert_array_equal(keypoints[:, :15], poses[1].keypoints)
    assert np.isnan(keypoints[:, 15:]).all() and not scores[:, 15:].any()
    status, reason = _reasons(workspace)["six less"]
    assert status == "failed" and "its poses have 14 frames, the video 20: expected at most 5" in reason


def test_the_most_present_persons_are_kept_in_their_order(
    workspace: Workspace, params: DatasetParams
) -> None:
    one = _imported("a", 3)
    one.keypoints[0, 5:], one.scores[0, 5:] = np.nan, 0
    one.keypoints[1, 15:], one.scores[1, 15:] = np.nan, 0
    _import(workspace, params, [_clip("a")], [one], persons=2)
    np.testing.assert_array_equal(_keypoints(workspace, "a"), one.keypoints[1:])


def test_who_comes_after_somebody_left_gets_the_slot_and_who_gets_none_is_counted(
    workspace: Workspace, params: DatasetParams
) -> None:
    one = _imported("a", 4)
    for person, frames in enumerate([slice(0, 20), slice(0, 9), slice(12, 18), slice(7, 11)]):
        away = np.ones(_FRAMES, bool)
        away[frames] = False
        one.keypoints[person, away], one.scores[person, away] = np.nan, 0
    _import(workspace, params, [_clip("a")], [one], persons=2)
    keypoints = _keypoints(workspace, "a")
    np.testing.assert_array_equal(keypoints[0], one.keypoints[0])
    expected = np.concatenate(
        [one.keypoints[1, :9], one.keypoints[3, 9:12], one.keypoints[2, 12:18], one.keypoints[1, 18:]]
    )
    np.testing.assert_array_equal(keypoints[1], expected)
    with Engine(workers=0) as engine:
        crop.run(params, workspace, engine)
    quality = read_crops(workspace.crops)["a"].quality
    assert quality is not None and (quality.persons, quality.dropped) == (2, 2)


def test_clips_that_fit_keep_the_fingerprints_of_earlier_versions(
    workspace: Workspace, params: DatasetParams
) -> None:
    _import(workspace, params, [_clip("a"), _clip("b")], [_imported("a", 2), _imported("b", 2)])
    before, part = read_records(workspace.poses)[0], part_file(workspace.poses, 0)
    content = part.read_bytes()
    shutil.copy(part, workspace.poses / "new")
    publish(workspace.poses, workspace.poses, 0, before.outcomes, {workspace.poses / "new": part})
    assert read_records(workspace.poses)[0].rules == 0
    _import(workspace, params, [_clip("a"), _clip("b")], [_imported("a", 2), _imported("b", 2)])
    assert read_records(workspace.poses)[0] == before and part.read_bytes() == content


def test_only_the_part_whose_poses_changed_is_made_again(workspace: Workspace, params: DatasetParams) -> None:
    ids = [f"clip {i}" for i in range(2 * CLIPS_PER_PART)]
    clips, poses = [_clip(id, 2) for id in ids], [_imported(id, frames=2) for id in ids]
    _import(workspace, params, clips, poses)
    before = [part_file(workspace.poses, part).stat().st_mtime_ns for part in (0, 1)]
    poses[-1].keypoints[...] = 7
    _import(workspace, params, clips, poses)
    after = [part_file(workspace.poses, part).stat().st_mtime_ns for part in (0, 1)]
    assert after[0] == before[0] and after[1] > before[1]
    assert (read_poses(part_file(workspace.poses, 1), ids[-1])[0] == 7).all()


def test_a_source_that_is_missing_stops_before_any_work(workspace: Workspace, params: DatasetParams) -> None:
    write_manifest(workspace.manifest, [_clip("a")])
    with pytest.raises(HarcacheError, match=r"gone\.h5 is missing; make it by 'harcache poses import'"):
        _run(workspace, params, ImportedPoseParams("import", "gone.h5", 2))
    with pytest.raises(HarcacheError, match=r"gone has no \.skeleton or \.mat files"):
        _run(workspace, params, KinectPoseParams("kinect", "gone", 2))


_NTU = "S001C001P00{}R001A001"


def test_kinects_skeletons_go_through_to_the_heatmaps_with_their_places_in_space(
    workspace: Workspace, params: DatasetParams
) -> None:
    ids = [_NTU.format(i) for i in range(1, 6)]
    write_manifest(workspace.manifest, [_clip(id, height=1080, width=1920) for id in ids])
    folder = Path("skeletons")
    frames = [{1: body(0.01 * t)} if t != 4 else {} for t in range(_FRAMES)]
    write_skeleton(folder / f"{ids[0]}.skeleton", frames)
    write_skeleton(folder / f"{ids[1]}.skeleton", [{}] * _FRAMES)
    write_skeleton(folder / f"{ids[2]}.skeleton", frames)
    (folder / f"{ids[3]}.skeleton").write_text("20\n1\n")
    (folder / "samples_with_missing_skeletons.txt").write_text(ids[2])
    params = replace(params, heatmap=HeatmapParams(shard_rows=64, size=16))
    params, counts = _run(workspace, params, KinectPoseParams("kinect", "skeletons", 2))
    assert counts == Counts(2, 2, 1)
    assert _reasons(workspace)[ids[2]] == ("skipped", "a list in skeletons names its skeletons as missing")
    assert "says 20 frames but has 3 lines" in _reasons(workspace)[ids[3]][1]
    assert _reasons(workspace)[ids[4]] == ("skipped", "skeletons has no skeletons of it")
    with Engine(workers=0) as engine:
        crop.run(params, workspace, engine)
        heatmap.run(params, workspace, engine)
    assert read_crops(workspace.crops)[ids[0]].source == "persons"
    assert read_crops(workspace.crops)[ids[1]].source == "whole image: nobody found"
    store = cache.open(workspace.heatmaps)
    assert store.heatmaps(ids[0]).shape == (_FRAMES, 25, 16, 16) and store.heatmaps(ids[0])[0].any()
    assert store.keypoints(ids[0]).shape == (_FRAMES, 2, 25, 3)
    positions = store.positions(ids[0])
    assert positions.shape == (_FRAMES, 2, 25, 3) and positions.dtype == np.float32
    np.testing.assert_array_equal(positions[:, 0], read_positions(part_file(workspace.poses, 0), ids[0])[0])
    assert np.isnan(positions[4]).all() and np.isnan(positions[:, 1]).all()
    assert set(inspect.digests(workspace)) == set(ids)
    assert export_poses(workspace, Path("out.pkl")) == 2
    exported = pickle.loads(Path("out.pkl").read_bytes())["annotations"][0]
    assert exported["keypoint"].shape == (1, _FRAMES, 25, 3) and "keypoint_score" not in exported
    np.testing.assert_array_equal(exported["keypoint"][0], np.nan_to_num(positions[:, 0]))


def test_clips_on_a_list_of_missing_skeletons_can_be_kept(
    workspace: Workspace, params: DatasetParams
) -> None:
    strict = replace(workspace, max_skipped=None)
    id, other, gone = (_NTU.format(i) for i in (1, 2, 3))
    write_manifest(workspace.manifest, [_clip(id), _clip(other), _clip(gone)])
    for name in (id, other):
        write_skeleton(Path("skeletons", f"{name}.skeleton"), [{1: body(0)}] * _FRAMES)
    Path("skeletons", "missing_skeletons.txt").write_text(f"{id}\n{gone}\n")
    # The list asks for it, be there a file or not.
    assert _run(strict, params, KinectPoseParams("kinect", "skeletons", 2))[1] == Counts(1, 2, 0)
    kept = KinectPoseParams("kinect", "skeletons", 2, keep_missing=True)
    assert _run(workspace, params, kept)[1] == Counts(2, 1, 0)
    with pytest.raises(
        HarcacheError, match=f"pose: 1 of 3 skipped that nobody asked to skip.*first '{gone}'"
    ):
        _run(strict, params, kept)
    # NTU's pixels are those of 1920x1080, this video is smaller.
    np.testing.assert_allclose(_keypoints(workspace, id)[0, 0, :, 0], body(0)[:, 5] / 6, rtol=1e-5)


def test_skeletons_without_pixels_crop_the_whole_image(workspace: Workspace, params: DatasetParams) -> None:
    write_manifest(workspace.manifest, [_clip("a1_s1_t1", video="a1_s1_t1_color.avi")])
    joints = np.random.default_rng(0).normal(size=(20, 3, _FRAMES))
    write_mat(Path("skeletons", "a1_s1_t1_skeleton.mat"), joints)
    params = replace(params, heatmap=HeatmapParams(shard_rows=64, size=16))
    params, _ = _run(workspace, params, KinectPoseParams("kinect", "skeletons", 1))
    with Engine(workers=0) as engine:
        crop.run(params, workspace, engine)
        heatmap.run(params, workspace, engine)
    found = read_crops(workspace.crops)["a1_s1_t1"]
    assert found.box == (0, 0, 320, 240) and found.source == "whole image: no place in the picture is known"
    store = cache.open(workspace.heatmaps)
    np.testing.assert_array_equal(
        store.positions("a1_s1_t1")[:, 0], joints.transpose(2, 0, 1).astype(np.float32)
    )
    assert not store.heatmaps("a1_s1_t1").any()

"""The poses of the demo's performers are theirs, and who has no box has no pose."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harcache.cache.annotations import read_detections, read_poses, write_detections, write_poses
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_manifest, write_manifest
from harcache.pipeline.datasets.truth import read_truth
from harcache.pipeline.params import DatasetParams, FolderIndexParams, GivenBoxesParams
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import Counts
from harcache.pipeline.work.parts import Outcome, publish, read_records
from harcache.stages import crop, detect, index, pose
from harcache.stages.crop import read_crops
from harcache.stages.persons.tracking import link_persons
from harcache.stages.scoring.extraction import pck
from harcache.stages.shared.units import part_file
from harcache.stages.shared.workspace import Workspace


def test_the_demos_poses_are_near_the_truth(demo: Workspace) -> None:
    truth = read_truth(demo.videos)
    assert truth is not None
    right, total = np.sum(
        [
            pck(read_poses(part_file(demo.poses, 0), name)[0], known.keypoints)
            for name, known in truth.items()
        ],
        axis=0,
    )
    assert right / total > 0.95


def test_every_frame_and_kept_person_has_a_pose_or_none(demo: Workspace) -> None:
    for clip in read_manifest(demo.manifest):
        keypoints, scores = read_poses(part_file(demo.poses, 0), clip.id)
        links = link_persons(read_detections(part_file(demo.detections, 0), clip.id), 2)
        assert keypoints.shape == (*links.shape, 17, 2) and scores.shape == (*links.shape, 17)
        np.testing.assert_array_equal(np.isfinite(keypoints).all(axis=(2, 3)), links >= 0)
        assert scores[links >= 0].any(axis=-1).all() and not scores[links < 0].any()


def test_a_persons_pose_is_in_the_persons_own_box(demo: Workspace) -> None:
    for clip in read_manifest(demo.manifest):
        boxes = read_detections(part_file(demo.detections, 0), clip.id)
        links = link_persons(boxes, 2)
        center = np.median(read_poses(part_file(demo.poses, 0), clip.id)[0], axis=2)
        for m, t in np.argwhere(links >= 0):
            x1, y1, x2, y2, _ = boxes[t][links[m, t]]
            middle = (x1 + x2) / 2, (y1 + y2) / 2
            np.testing.assert_allclose(center[m, t], middle, atol=0.3 * (y2 - y1))


def _run(params: DatasetParams, workspace: Workspace) -> Counts:
    with Engine(workers=0) as engine:
        return pose.run(params, workspace, engine)


@pytest.fixture
def short(own_demo: Workspace) -> Workspace:
    """The tiny demo reduced to its two shortest clips, not posed yet."""
    clips = sorted(read_manifest(own_demo.manifest), key=lambda clip: clip.frames)[:2]
    write_manifest(own_demo.manifest, sorted(clips, key=lambda clip: clip.id))
    for path in own_demo.poses.iterdir():
        path.unlink()
    return own_demo


def _replace_detections(workspace: Workspace, boxes: dict[str, list[np.ndarray]]) -> None:
    write_detections(workspace.detections / "new", boxes)
    outcomes = [Outcome(name, "ok", "by hand") for name in boxes]
    final = part_file(workspace.detections, 0)
    publish(workspace.detections, workspace.detections, 0, outcomes, {workspace.detections / "new": final})


def test_a_person_is_missing_where_no_box_is_and_a_clip_of_nobody_is_no_failure(
    short: Workspace, params: DatasetParams
) -> None:
    some, nobody = read_manifest(short.manifest)
    boxes = read_detections(part_file(short.detections, 0), some.id)
    gap = [found[:1] if 5 <= t < 9 else found[:0] for t, found in enumerate(boxes)]
    _replace_detections(short, {some.id: gap, nobody.id: [np.empty((0, 5), np.float32)] * nobody.frames})
    assert _run(params, short) == Counts(2, 0, 0)
    keypoints, scores = read_poses(part_file(short.poses, 0), some.id)
    assert np.flatnonzero(np.isfinite(keypoints).all(axis=(0, 2, 3))).tolist() == [5, 6, 7, 8]
    assert np.flatnonzero(scores.any(axis=(0, 2))).tolist() == [5, 6, 7, 8]
    assert read_poses(part_file(short.poses, 0), nobody.id)[0].shape == (0, nobody.frames, 17, 2)


def _as_an_earlier_version(workspace: Workspace) -> None:
    """Make the part of poses what a version without shared slots left: other numbers show that it is kept."""
    [record], part = read_records(workspace.poses), part_file(workspace.poses, 0)
    poses = {one.id: read_poses(part, one.id) for one in record.outcomes}
    write_poses(workspace.poses / "new", {id: (points + 1, scores) for id, (points, scores) in poses.items()})
    publish(workspace.poses, workspace.poses, 0, record.outcomes, {workspace.poses / "new": part})


def test_only_clips_that_share_slots_change_what_an_earlier_version_made(
    short: Workspace, params: DatasetParams
) -> None:
    same, shared = read_manifest(short.manifest)
    boxes = {clip.id: read_detections(part_file(short.detections, 0), clip.id) for clip in (same, shared)}
    gap = [found[:0] if 5 <= t < 9 else found[:1] for t, found in enumerate(boxes[shared.id])]
    aside = np.array([300, 0, 300, 0, 0])
    moved = [found + aside if t < 5 else found for t, found in enumerate(gap)]
    _replace_detections(short, boxes | {shared.id: [found.astype(np.float32) for found in gap]})
    _run(params, short)
    before = read_records(short.poses)[0]
    points = {id: read_poses(part_file(short.poses, 0), id)[0] for id in boxes}
    _as_an_earlier_version(short)
    _run(params, short)
    # Nobody shares a slot here: all is kept, and only the record says by which rules it was made.
    now = read_records(short.poses)[0]
    assert now.outcomes == before.outcomes and now.rules == before.rules != 0
    for id in boxes:
        np.testing.assert_array_equal(read_poses(part_file(short.poses, 0), id)[0], points[id] + 1)
    # The same detections, for all that the records say; but now who comes back is elsewhere.
    _replace_detections(short, boxes | {shared.id: moved})
    _as_an_earlier_version(short)
    _run(params, short)
    outcomes = {outcome.id: outcome for outcome in read_records(short.poses)[0].outcomes}
    assert outcomes[same.id] == before.outcomes[0]
    assert outcomes[shared.id].fingerprint != before.outcomes[1].fingerprint
    np.testing.assert_array_equal(read_poses(part_file(short.poses, 0), same.id)[0], points[same.id] + 2)
    again = read_poses(part_file(short.poses, 0), shared.id)[0]
    assert len(again) == 1
    np.testing.assert_array_equal(again[:, 9:], points[shared.id][:, 9:])
    stamp = part_file(short.poses, 0).stat().st_mtime_ns
    _run(params, short)
    assert part_file(short.poses, 0).stat().st_mtime_ns == stamp


def test_a_damaged_part_of_an_earlier_version_is_not_kept(short: Workspace, params: DatasetParams) -> None:
    _run(params, short)
    whole = part_file(short.poses, 0).read_bytes()
    _as_an_earlier_version(short)
    part = part_file(short.poses, 0)
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    _run(params, short)
    assert part.read_bytes() == whole


def test_a_video_that_broke_after_the_detection_fails_alone(short: Workspace, params: DatasetParams) -> None:
    broken, whole = read_manifest(short.manifest)
    (short.videos / broken.video).write_bytes(b"no video")
    assert _run(params, short) == Counts(1, 0, 1)
    outcomes = {outcome.id: outcome for outcome in read_records(short.poses)[0].outcomes}
    assert outcomes[whole.id].status == "ok"
    assert "is no video or its end is missing" in outcomes[broken.id].reason


def test_unknown_weights_are_named_before_any_work(short: Workspace, params: DatasetParams) -> None:
    unknown = replace(params, pose=replace(params.pose, weights="demo-hrnett"))
    with pytest.raises(HarcacheError, match="weights 'demo-hrnett' are not in"):
        _run(unknown, short)
    assert list(short.poses.iterdir()) == []


_REENTER = Path(__file__).parents[3] / "shared" / "cases" / "reenter"


@pytest.mark.slow
@pytest.mark.parametrize(("slots", "dropped"), [(2, 0), (1, 80)])
def test_an_actor_who_leaves_and_comes_back_beside_a_bystander_has_poses_in_all_their_frames(
    tmp_path: Path, params: DatasetParams, slots: int, dropped: int
) -> None:
    if not _REENTER.is_dir():
        pytest.skip(f"the case is not here: {_REENTER} is missing")
    workspace = Workspace.under(tmp_path, "demo", tmp_path / "videos")
    (workspace.videos / "x").mkdir(parents=True)
    (workspace.videos / "x" / "a.mp4").symlink_to(_REENTER / "a.mp4")
    given = GivenBoxesParams("boxes", str(_REENTER / "boxes.csv"))
    estimate = replace(params.pose, max_persons=slots)
    params = replace(params, index=FolderIndexParams("folder"), detect=given, pose=estimate)
    with Engine(workers=0) as engine:
        for stage in (index, detect, pose, crop):
            stage.run(params, workspace, engine)
    keypoints = read_poses(part_file(workspace.poses, 0), "x__a")[0]
    assert np.isfinite(keypoints).all(axis=(2, 3)).sum(axis=1).tolist() == [100, 80][:slots]
    found = read_crops(workspace.crops)["x__a"]
    assert found.quality is not None and found.quality.dropped == dropped
    assert ("crowded" in found.flags) == bool(dropped)

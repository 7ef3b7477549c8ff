"""The poses of the demo's performers are theirs, and who has no box has no pose."""

from dataclasses import replace

import numpy as np
import pytest

from harcache.cache.annotations import read_detections, read_poses, write_detections
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_manifest, write_manifest
from harcache.pipeline.datasets.demo import read_truth
from harcache.pipeline.params import DatasetParams
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import Counts
from harcache.pipeline.work.parts import Outcome, publish, read_records
from harcache.stages import pose
from harcache.stages.evaluate import pck
from harcache.stages.persons.tracking import link_persons
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

"""Persons keep their place from frame to frame, and the poses of the demo's performers are theirs."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.annotations import read_detections, read_poses, write_detections
from pipeline.clips import read_manifest, write_manifest
from pipeline.datasets.demo import read_truth
from pipeline.engine import Engine
from pipeline.errors import HarcacheError
from pipeline.outcomes import Counts
from pipeline.params import DatasetParams
from pipeline.parts import Outcome, publish, read_records
from stages import pose
from stages.building import part_file
from stages.evaluate import pck
from stages.pose import link_persons
from stages.workspace import Workspace


def _box(x: float, y: float = 50, width: float = 40, height: float = 90, score: float = 0.9) -> list[float]:
    return [x, y, x + width, y + height, score]


def _frame(*boxes: list[float]) -> np.ndarray:
    return np.array(boxes, np.float32).reshape(-1, 5)


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8), st.booleans()), min_size=1, max_size=30))
def test_two_persons_who_do_not_cross_stay_who_they_are(steps: list[tuple[float, float, bool]]) -> None:
    left, right, swapped, frames = 50.0, 350.0, [], []
    for one, other, swap in [(0.0, 0.0, False), *steps]:
        left, right = np.clip(left + one, 0, 100), np.clip(right + other, 300, 400)
        found = [_box(left), _box(right)]
        swapped.append(int(swap))
        frames.append(_frame(*(found[::-1] if swap else found)))
    links = link_persons(frames, 2)
    assert {tuple(track) for track in links.tolist()} == {
        tuple(swapped), tuple(1 - row for row in swapped)
    }  # fmt: skip


def test_someone_who_is_missing_in_some_frames_stays_the_same_person() -> None:
    seen = [_frame(_box(10 + 3 * t), _box(200)) for t in range(4)]
    links = link_persons([*seen, _frame(_box(200)), _frame(), _frame(_box(198), _box(24))], 2)
    assert links.tolist() == [[1, 1, 1, 1, 0, -1, 0], [0, 0, 0, 0, -1, -1, 1]]


def test_someone_who_comes_back_elsewhere_is_someone_else() -> None:
    links = link_persons([_frame(_box(10)), _frame(_box(10)), _frame(_box(200))], 2)
    assert links.tolist() == [[0, 0, -1], [-1, -1, 0]]


def test_who_is_seen_longest_comes_first_and_only_so_many_are_kept() -> None:
    frames = [_frame(_box(10)), _frame(_box(10), _box(200)), _frame(_box(10), _box(200), _box(400))]
    frames += [_frame(_box(200), _box(400)), _frame(_box(200))]
    assert link_persons(frames, 2).tolist() == [[-1, 1, 1, 0, 0], [0, 0, 0, -1, -1]]
    assert link_persons(frames, 9).tolist()[2] == [-1, -1, 2, 1, -1]


def test_among_those_seen_as_long_the_surer_one_comes_first() -> None:
    frames = [_frame(_box(10, score=0.5), _box(200, score=0.8))] * 3
    assert link_persons(frames, 1).tolist() == [[1, 1, 1]]


def test_nobody_gives_no_track() -> None:
    assert link_persons([_frame()] * 4, 2).shape == (0, 4)


_ANYWHERE = st.builds(
    _box,
    st.floats(0, 300),
    st.floats(0, 200),
    st.floats(0, 120),
    st.floats(0, 120),
    st.floats(0, 1),
)


@settings(max_examples=200, deadline=None)
@given(frames=st.lists(st.lists(_ANYWHERE, max_size=5), min_size=1, max_size=8), most=st.integers(1, 6))
def test_every_box_is_in_at_most_one_track_and_no_track_has_two_of_a_frame(
    frames: list[list[list[float]]], most: int
) -> None:
    boxes = [_frame(*found) for found in frames]
    everybody = link_persons(boxes, 1000)
    for t, found in enumerate(boxes):
        # A track has one entry a frame, so that it can't hold two.
        assert sorted(row for row in everybody[:, t].tolist() if row >= 0) == list(range(len(found)))
    seen = (everybody >= 0).sum(axis=1)
    assert (seen > 0).all() and (np.diff(seen) <= 0).all()
    np.testing.assert_array_equal(link_persons(boxes, most), everybody[:most])


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
    _replace_detections(short, {some.id: gap, nobody.id: [_frame()] * nobody.frames})
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

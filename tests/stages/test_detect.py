"""The shipped detector finds the demo's performers, frame by frame, and a bad video stops no other."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harcache.cache.annotations import read_detections
from harcache.models.pretrained.weight_files import find_weights
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_manifest, write_manifest
from harcache.pipeline.datasets.truth import read_truth
from harcache.pipeline.params import DatasetParams
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import Counts, read_failures
from harcache.stages import detect
from harcache.stages.detect import between
from harcache.stages.scoring.extraction import detection_quality
from harcache.stages.shared.units import part_file
from harcache.stages.shared.workspace import Workspace


def test_the_demos_figures_are_found(demo: Workspace) -> None:
    truth = read_truth(demo.videos)
    assert truth is not None
    right, found, true = np.sum(
        [
            detection_quality(
                read_detections(part_file(demo.detections, 0), name), list(known.boxes.swapaxes(0, 1))
            )
            for name, known in truth.items()
        ],
        axis=0,
    )
    assert right / true > 0.95
    assert right / found > 0.95


def test_every_frame_has_its_boxes_in_pixels_of_the_frame(demo: Workspace, params: DatasetParams) -> None:
    for clip in read_manifest(demo.manifest):
        found = read_detections(part_file(demo.detections, 0), clip.id)
        assert len(found) == clip.frames
        boxes = np.concatenate(found)
        assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] < boxes[:, 2:4]).all()
        assert (boxes[:, 2:4] <= (clip.width, clip.height)).all()
        assert (boxes[:, 4] >= params.detect.score).all()
        assert max(map(len, found)) <= params.detect.max_persons


def _run(params: DatasetParams, workspace: Workspace) -> Counts:
    with Engine(workers=0) as engine:
        return detect.run(params, workspace, engine)


@pytest.fixture
def short(own_demo: Workspace) -> Workspace:
    """The tiny demo reduced to its two shortest clips, not detected yet."""
    clips = sorted(read_manifest(own_demo.manifest), key=lambda clip: clip.frames)[:2]
    write_manifest(own_demo.manifest, sorted(clips, key=lambda clip: clip.id))
    for path in own_demo.detections.iterdir():
        path.unlink()
    return own_demo


def test_boxes_depend_on_the_clip_alone_and_a_second_run_touches_nothing(
    short: Workspace, demo: Workspace, params: DatasetParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two clips are read at once, so that they share batches as it happens.
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert _run(params, short) == Counts(2, 0, 0)
    part = part_file(short.detections, 0)
    for clip in read_manifest(short.manifest):
        both = (read_detections(part, clip.id), read_detections(part_file(demo.detections, 0), clip.id))
        for ours, among_others in zip(*both, strict=True):
            np.testing.assert_array_equal(ours, among_others)
    before = part.stat().st_mtime_ns
    assert _run(params, short) == Counts(2, 0, 0)
    assert part.stat().st_mtime_ns == before


def test_a_video_cut_short_after_it_was_indexed_fails_alone(short: Workspace, params: DatasetParams) -> None:
    broken, whole = read_manifest(short.manifest)
    video = short.videos / broken.video
    video.write_bytes(video.read_bytes()[:-500])
    assert _run(params, short) == Counts(1, 0, 1)
    ((name, status, reason),) = read_failures(short.failures("detect"))
    assert (name, status) == (broken.id, "failed")
    assert re.search(rf"{broken.id}_rgb\.mp4 is no video or its end is missing", reason)
    assert len(read_detections(part_file(short.detections, 0), whole.id)) == whole.frames


def test_unknown_weights_are_named_before_any_work(short: Workspace, params: DatasetParams) -> None:
    unknown = replace(params, detect=replace(params.detect, weights="demo-yol"))
    with pytest.raises(HarcacheError, match="weights 'demo-yol' are not in"):
        _run(unknown, short)
    assert list(short.detections.iterdir()) == []


def test_other_weights_of_the_same_name_are_read_by_a_process_that_knew_the_first(
    short: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    # As a worker of a running Dask cluster does, which outlives the commands.
    workspace, mine = replace(short, weights_dir=tmp_path), tmp_path / "mine.pt"
    with_mine = replace(params, detect=replace(params.detect, weights="mine"))
    mine.write_bytes(find_weights("demo-yolo").read_bytes())
    assert _run(with_mine, workspace) == Counts(2, 0, 0)
    mine.write_bytes(b"others, and damaged")
    with pytest.raises(HarcacheError, match=r"mine\.pt"):
        _run(with_mine, workspace)


def _box(x: float, score: float = 0.5) -> list[float]:
    return [x, 10, x + 40, 90, score]


def _found(*boxes: list[float]) -> np.ndarray:
    return np.array(boxes, np.float32).reshape(-1, 5)


def test_between_two_frames_a_person_moves_in_a_straight_line() -> None:
    boxes = between([0, 4], [_found(_box(100, 0.4), _box(10, 0.3)), _found(_box(14, 0.9), _box(92, 0.5))])
    assert [[round(float(row[0])) for row in frame] for frame in boxes] == [
        *([100, 10], [11, 98], [12, 96], [13, 94], [14, 92])
    ]  # fmt: skip
    np.testing.assert_allclose(boxes[3][:, 4], [0.75, 0.475], atol=1e-6)


def test_who_is_seen_on_one_side_only_stays_up_to_the_middle() -> None:
    boxes = between([0, 5, 6], [_found(_box(10)), _found(_box(200)), _found()])
    assert [frame[:, 0].tolist() for frame in boxes] == [[10], [10], [10], [200], [200], [200], []]


@settings(max_examples=60, deadline=None)
@given(
    frames=st.lists(st.lists(st.floats(0, 300), max_size=3), min_size=1, max_size=12),
    every=st.integers(1, 6),
)
def test_frames_that_were_looked_at_keep_their_boxes(frames: list[list[float]], every: int) -> None:
    everywhere = [_found(*map(_box, xs)) for xs in frames]
    looked_at = sorted({*range(0, len(frames), every), len(frames) - 1})
    boxes = between(looked_at, [everywhere[frame] for frame in looked_at])
    assert len(boxes) == len(frames)
    for frame in looked_at:
        np.testing.assert_array_equal(boxes[frame], everywhere[frame])
    assert all((np.diff(found[:, 4]) <= 0).all() for found in boxes)
    assert all((found[:, 2] > found[:, 0]).all() for found in boxes)


def test_every_third_frame_finds_nearly_as_many(short: Workspace, params: DatasetParams) -> None:
    every = replace(params, detect=replace(params.detect, every=3))
    assert _run(every, short) == Counts(2, 0, 0)
    truth = read_truth(short.videos)
    assert truth is not None
    for clip in read_manifest(short.manifest):
        found = read_detections(part_file(short.detections, 0), clip.id)
        assert len(found) == clip.frames
        right, _, true = detection_quality(found, list(truth[clip.id].boxes.swapaxes(0, 1)))
        assert right / true > 0.9

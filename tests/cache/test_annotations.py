"""Boxes and keypoints: what goes in comes out, the same bytes every time, and no damage passes unseen."""

import sys
import threading
import time
from collections import deque

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harcache.cache.annotations import read_detections, read_poses, write_detections, write_poses
from harcache.cache.errors import CacheError
from harcache.pipeline.base.errors import NewerFormatError

_RNG = np.random.default_rng(0)
_IDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
_in_one_folder = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _boxes(*persons: int) -> list[np.ndarray]:
    return [_RNG.uniform(0, 500, (n, 5)).astype(np.float32) for n in persons]


def _pose(persons: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    keypoints = _RNG.uniform(0, 500, (persons, frames, 17, 2)).astype(np.float32)
    keypoints[:, ::3] = np.nan
    return keypoints, _RNG.uniform(0, 1, (persons, frames, 17)).astype(np.float32)


def _assert_same_boxes(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert [box.shape for box in found] == [box.shape for box in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@_in_one_folder
@given(st.dictionaries(_IDS, st.lists(st.integers(0, 4), min_size=1, max_size=6), max_size=5))
def test_boxes_come_back_as_they_were(tmp_path, clips):
    detections = {id: _boxes(*persons) for id, persons in clips.items()}
    write_detections(tmp_path / "part.h5", detections)
    for id, boxes in detections.items():
        _assert_same_boxes(read_detections(tmp_path / "part.h5", id), boxes)


@_in_one_folder
@given(st.dictionaries(_IDS, st.tuples(st.integers(0, 3), st.integers(1, 6)), max_size=5))
def test_poses_come_back_as_they_were(tmp_path, clips):
    poses = {id: _pose(*shape) for id, shape in clips.items()}
    write_poses(tmp_path / "part.h5", poses)
    for id, (keypoints, scores) in poses.items():
        found = read_poses(tmp_path / "part.h5", id)
        np.testing.assert_array_equal(found[0], keypoints)
        np.testing.assert_array_equal(found[1], scores)
        assert found[0].dtype == found[1].dtype == np.float32


def test_the_same_input_gives_the_same_bytes_at_another_time(tmp_path):
    detections, poses = {"a": _boxes(1, 0, 2), "b": _boxes(3)}, {"a": _pose(2, 4)}
    for name in ("first", "second"):
        write_detections(tmp_path / f"{name}.boxes", detections)
        write_poses(tmp_path / f"{name}.poses", poses)
        time.sleep(1.1)  # HDF5 counts its times in seconds
    for kind in ("boxes", "poses"):
        assert (tmp_path / f"first.{kind}").read_bytes() == (tmp_path / f"second.{kind}").read_bytes()


def test_the_same_input_gives_the_same_bytes_under_a_profiler(tmp_path):
    stopped, held = threading.Event(), deque(maxlen=4)

    def sample() -> None:  # as Dask's workers do: what a frame refers to lives on while it is looked at
        while not stopped.wait(1e-4):
            held.append(sys._current_frames())

    profiler = threading.Thread(target=sample)
    profiler.start()
    try:
        found = set()
        for _ in range(50):
            write_detections(tmp_path / "part.h5", {"a": [np.zeros((2, 5), np.float32)]})
            found.add((tmp_path / "part.h5").read_bytes())
    finally:
        stopped.set()
        profiler.join()
    assert len(found) == 1


def test_no_flipped_bit_changes_a_value_unseen(tmp_path):
    path, boxes = tmp_path / "part.h5", _boxes(2, 0, 3)
    write_detections(path, {"a": _boxes(1), "b": boxes})
    whole = path.read_bytes()
    for position in range(0, len(whole), 17):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = read_detections(path, "b")
        except CacheError as error:
            assert str(path) in str(error) and "'b'" in str(error)
        else:
            _assert_same_boxes(found, boxes)


def test_a_flipped_bit_in_a_keypoint_is_found_and_named(tmp_path):
    path, (keypoints, scores) = tmp_path / "part.h5", _pose(1, 50)
    write_poses(path, {"clip": (keypoints, scores)})
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(scores[0, 20].tobytes()) + 3] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(CacheError, match=r"part\.h5: clip 'clip' cannot be read .* delete it and run"):
        read_poses(path, "clip")


@pytest.mark.parametrize("kept", [0, 100, 0.5, -1])
def test_a_cut_off_file_is_found(tmp_path, kept):
    path = tmp_path / "part.h5"
    write_detections(path, {"a": _boxes(1)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept == 0.5 else kept])
    with pytest.raises(CacheError, match="clip 'a' cannot be read"):
        read_detections(path, "a")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CacheError, match=r"gone\.h5: no such file for clip 'a'"):
        read_detections(tmp_path / "gone.h5", "a")


def test_a_clip_of_another_part_is_named(tmp_path):
    write_detections(tmp_path / "part.h5", {"a": _boxes(1)})
    with pytest.raises(CacheError, match="clip 'b' is not in this file"):
        read_detections(tmp_path / "part.h5", "b")


def test_poses_are_not_taken_for_detections(tmp_path):
    write_poses(tmp_path / "part.h5", {"a": _pose(1, 2)})
    with pytest.raises(CacheError, match=r"found format harcache\.poses/1, expected harcache\.detections/1"):
        read_detections(tmp_path / "part.h5", "a")


def test_a_foreign_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["clip_id"] = [b"a"]
    with pytest.raises(CacheError, match="found format None"):
        read_poses(tmp_path / "part.h5", "a")


@pytest.mark.parametrize("table", ["clip_id", "frame_start", "box_start", "box"])
def test_a_table_that_is_none_is_named(tmp_path, table):
    write_detections(tmp_path / "a.h5", {"a": [np.zeros((1, 5), np.float32)]})
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file[table]
        file.create_group(table)
    with pytest.raises(CacheError, match=r"a\.h5: clip 'a' cannot be read"):
        read_detections(tmp_path / "a.h5", "a")


@pytest.mark.parametrize("starts", [[0], [9, 9]])
def test_offsets_that_lead_nowhere_are_named(tmp_path, starts):
    write_detections(tmp_path / "a.h5", {"a": [np.zeros((1, 5), np.float32)]})
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["frame_start"]
        file["frame_start"] = np.array(starts)
    with pytest.raises(CacheError, match=r"a\.h5: clip 'a' cannot be read"):
        read_detections(tmp_path / "a.h5", "a")


def test_a_newer_format_is_refused(tmp_path):
    write_detections(tmp_path / "part.h5", {"a": _boxes(1)})
    with h5py.File(tmp_path / "part.h5", "r+") as file:
        file.attrs["format"] = "harcache.detections/2"
    with pytest.raises(
        NewerFormatError, match=r"format harcache\.detections/2, this one reads harcache\.detections/1\)"
    ):
        read_detections(tmp_path / "part.h5", "a")


def test_boxes_without_scores_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(CacheError, match=r"clip 'a' has an array of shape \(2, 4\), expected \(None, 5\)"):
        write_detections(tmp_path / "part.h5", {"a": [np.zeros((2, 4))]})
    assert not (tmp_path / "part.h5").exists()


def test_scores_that_do_not_match_their_keypoints_are_refused(tmp_path):
    keypoints, scores = _pose(2, 3)
    with pytest.raises(CacheError, match=r"shape \(2, 2, 17\), expected \(2, 3, 17\)"):
        write_poses(tmp_path / "part.h5", {"a": (keypoints, scores[:, :2])})


def test_a_clip_without_frames_is_refused(tmp_path):
    with pytest.raises(CacheError, match="clip 'a' has no frames"):
        write_detections(tmp_path / "part.h5", {"a": []})
    with pytest.raises(CacheError, match="clip 'a' has no frames"):
        write_poses(tmp_path / "part.h5", {"a": _pose(1, 0)})

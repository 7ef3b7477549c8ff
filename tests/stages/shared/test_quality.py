"""What the measures of a clip's poses say, by clips made by hand, and that nothing else moves them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache.stages.shared.quality import FLAGS, Quality, quality_of

_SIZE = (240, 320)
_FRAMES = 30


def _walk(speed: float = 1.0, start: float = 100.0) -> tuple[np.ndarray, np.ndarray]:
    """One person, 100 pixels high, who walks to the right: keypoints (1, T, 17, 2) and scores of 0.8."""
    joints = np.column_stack([np.tile([0, 20], 9)[:17], np.linspace(60, 160, 17)])
    steps = np.column_stack([start + speed * np.arange(_FRAMES), np.zeros(_FRAMES)])
    return (joints + steps[:, None])[None].astype(np.float32), np.full((1, _FRAMES, 17), 0.8, np.float32)


def test_a_person_who_walks_is_nothing_to_flag() -> None:
    found = quality_of(*_walk(), _SIZE, 0.3)
    assert found == Quality(1, pytest.approx(0.8), 0.0, 0, 1.0)
    assert found.flags(whole_image=False) == ()
    assert found.flags(whole_image=True) == ("whole_image",)


def test_scores_that_are_no_numbers_count_as_unsure() -> None:
    keypoints, scores = _walk()
    scores[:, :20] = np.nan
    found = quality_of(keypoints, scores, _SIZE, 0.3)
    assert found.confidence == pytest.approx(0.8 / 3) and "low_confidence" in found.flags(whole_image=False)


def test_nobody_is_flagged_as_that_alone() -> None:
    empty = np.full((1, _FRAMES, 17, 2), np.nan), np.zeros((1, _FRAMES, 17))
    for keypoints, scores in (empty, (np.empty((0, 5, 17, 2)), np.empty((0, 5, 17)))):
        assert quality_of(keypoints, scores, _SIZE, 0.3) == Quality(0, 0.0, 0.0, 0, 0.0)
    assert Quality(0, 0.0, 0.0, 0, 0.0).flags(whole_image=True) == ("nobody", "whole_image")


def test_a_skeleton_without_a_place_in_the_picture_is_not_nobody() -> None:
    keypoints, scores = _walk()
    found = quality_of(np.full_like(keypoints, np.nan), scores, _SIZE, 0.3)
    assert found == Quality(1, pytest.approx(0.8), 0.0, 0, 1.0)


def test_a_person_who_is_suddenly_elsewhere_changed() -> None:
    keypoints, scores = _walk()
    keypoints[:, 10:] += (60, 0)
    found = quality_of(keypoints, scores, _SIZE, 0.3)
    assert found.changes == 1 and found.flags(whole_image=False) == ("identity_change",)


def test_a_person_who_was_hidden_may_have_walked_meanwhile() -> None:
    keypoints, scores = _walk(speed=6, start=20)
    keypoints[:, 5:20], scores[:, 5:20] = np.nan, 0
    assert quality_of(keypoints, scores, _SIZE, 0.3).changes == 0


def test_a_clip_in_most_of_whose_frames_nobody_is_found_is_flagged() -> None:
    keypoints, scores = _walk()
    keypoints[:, 14:], scores[:, 14:] = np.nan, 0
    found = quality_of(keypoints, scores, _SIZE, 0.3)
    assert found.seen == pytest.approx(14 / 30) and found.flags(whole_image=False) == ("rarely_seen",)


def test_a_clip_that_lost_persons_is_crowded_and_what_was_not_measured_is_known() -> None:
    keypoints, scores = _walk()
    found = quality_of(keypoints, scores, _SIZE, 0.3)
    assert replace(found, dropped=1).flags(whole_image=False) == ("crowded",)
    assert replace(found, dropped=0).flags(whole_image=False) == ()
    assert not found.tells(["crowded"]) and found.tells(["rarely_seen", "nobody"])
    assert not replace(found, seen=None, dropped=0).tells(["rarely_seen"])
    assert replace(found, dropped=0).tells(FLAGS)


def test_a_slot_that_passes_from_one_person_to_another_changes_once() -> None:
    keypoints, scores = _walk()
    keypoints[:, 15:] = _walk(-1, 280)[0][:, 15:]
    found = quality_of(keypoints, scores, _SIZE, 0.3)
    assert (found.persons, found.changes, found.seen) == (1, 1, 1.0)


def test_hidden_legs_are_no_change() -> None:
    keypoints, scores = _walk()
    scores[:, ::2, 6:] = 0.1
    assert quality_of(keypoints, scores, _SIZE, 0.3).changes == 0


def test_keypoints_outside_are_counted_where_they_count() -> None:
    keypoints, scores = _walk()
    keypoints[:, :, :4, 1] = -20
    found = quality_of(keypoints, scores, _SIZE, 0.3)
    assert found.outside == pytest.approx(4 / 17) and "outside" in found.flags(whole_image=False)
    scores[:, :, :4] = 0.1
    assert quality_of(keypoints, scores, _SIZE, 0.3).outside == 0


def test_unsure_poses_are_flagged() -> None:
    keypoints, scores = _walk()
    assert quality_of(keypoints, scores * 0.4, _SIZE, 0.3).flags(whole_image=False) == ("low_confidence",)


@given(st.integers(0, 3), st.integers(1, 6), st.integers(0, 2**32), st.floats(0, 1))
def test_any_poses_have_measures_within_their_ranges(
    persons: int, frames: int, seed: int, min_score: float
) -> None:
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform(-400, 400, (persons, frames, 17, 2))
    keypoints[rng.random((persons, frames)) < 0.3] = np.nan
    found = quality_of(keypoints, rng.random((persons, frames, 17)) * 1.2, _SIZE, min_score)
    assert 0 <= found.persons <= persons and found.changes <= persons * (frames - 1)
    assert 0 <= found.confidence <= 1 and 0 <= found.outside <= 1 and 0 <= found.seen <= 1
    assert set(found.flags(whole_image=True)) <= set(FLAGS)

"""Persons keep their place from frame to frame, and the ones most present are kept."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tracking import link_persons


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

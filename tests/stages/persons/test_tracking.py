"""Persons keep their place from frame to frame, and the ones most present are kept."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from harcache.pipeline.datasets.figures import make_room, make_scene, scene_truth
from harcache.pipeline.datasets.motion import TWO_PERSONS, make_look
from harcache.stages.persons.boxes import overlaps
from harcache.stages.persons.tracking import link_persons


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


@pytest.mark.parametrize("unseen", [1, 5, 15])
def test_someone_who_walks_on_or_stops_while_unseen_stays_the_same_person(unseen: int) -> None:
    for step in (0, 4):
        seen = [_frame(_box(10 + 4 * t), _box(300)) for t in range(10)]
        there = 10 + 4 * 9 + step * min(unseen, 10)
        links = link_persons([*seen, *[_frame(_box(300))] * unseen, _frame(_box(there), _box(300))], 2)
        assert links[:, -1].tolist() == [1, 0] and (links[1] >= 0).sum() == 11


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


def _persons(action: int, camera: int, seed: int) -> np.ndarray:
    """True boxes (M, T, 4) of the demo's figures."""
    rng = np.random.default_rng(seed)
    looks = tuple(make_look(rng) for _ in range(2 if action in TWO_PERSONS else 1))
    room = make_room((240, 320), rng)
    return scene_truth(make_scene(action, camera, looks, 45, room, rng, rng))[0].astype(float)


def _walking(seed: int) -> np.ndarray:
    """Two of the demo's figures walk through each other, at up to a run: true boxes (2, T, 4)."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(1, 11, 2)
    boxes = np.concatenate([_persons(int(action), 2, seed + 1000 * i) for i, action in enumerate(actions)])
    height = np.mean(boxes[..., 3] - boxes[..., 1])
    way = rng.uniform(0.02, 0.08) * height * (np.arange(boxes.shape[1]) - rng.uniform(13, 32))
    middle = boxes[..., 0::2].mean(axis=(1, 2), keepdims=True)
    boxes[..., 0::2] += np.stack([way, -way])[..., None] - middle
    return boxes


def _found(
    true: np.ndarray, seed: int, missed: float, noise: float
) -> tuple[list[np.ndarray], list[list[int]]]:
    """What a detector makes of true boxes, and whose each box is.

    It misses a share of them, is off by ``noise`` heights, and gives one box for two nearly the same ones.
    """
    rng = np.random.default_rng(seed)
    frames, whose = [], []
    for boxes in true.transpose(1, 0, 2):
        kept = rng.random(2) >= missed
        if kept.all() and overlaps(boxes[:1], boxes[1:])[0, 0] > 0.6:
            kept[rng.integers(2)] = False
        order = [int(person) for person in rng.permutation(2) if kept[person]]
        off = rng.normal(0, noise, (2, 4)) * (boxes[:, 3:] - boxes[:, 1:2])
        frames.append(_frame(*[[*(boxes + off)[person], 0.9] for person in order]))
        whose.append(order)
    return frames, whose


def _swapped(true: np.ndarray, seed: int, missed: float, noise: float) -> float:
    """The share of the found boxes that are not in the track of most of their person's boxes."""
    frames, whose = _found(true, seed, missed, noise)
    votes = np.zeros((2, 2), int)
    for track, link in enumerate(link_persons(frames, 2)):
        for t in np.flatnonzero(link >= 0):
            votes[track, whose[t][link[t]]] += 1
    return 1 - votes[linear_sum_assignment(-votes)].sum() / sum(map(len, whose))


@pytest.mark.parametrize(("missed", "noise"), [(0.0, 0.0), (0.3, 0.04)])
def test_the_demos_two_persons_stay_who_they_are(missed: float, noise: float) -> None:
    apart, crossing = [], []
    for action, camera, seed in product(sorted(TWO_PERSONS), (1, 2, 3), range(8)):
        true = _persons(action, camera, seed)
        touch = any(overlaps(one[None], other[None])[0, 0] > 0 for one, other in zip(*true, strict=True))
        (crossing if touch else apart).append(_swapped(true, seed, missed, noise))
    assert len(apart) >= 5 and max(apart) == 0
    assert len(crossing) >= 20 and np.mean(crossing) <= 0.05


@pytest.mark.parametrize(("missed", "noise"), [(0.0, 0.0), (0.2, 0.03)])
def test_two_persons_who_walk_through_each_other_stay_who_they_are(missed: float, noise: float) -> None:
    assert np.mean([_swapped(_walking(seed), seed, missed, noise) for seed in range(40)]) <= 0.05


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

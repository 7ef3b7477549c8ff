"""Persons keep their place from frame to frame, and every frame shows as many as there are slots."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from harcache.pipeline.datasets.drawn_figures.backgrounds import make_room
from harcache.pipeline.datasets.drawn_figures.motion import TWO_PERSONS
from harcache.pipeline.datasets.drawn_figures.performers import make_look
from harcache.pipeline.datasets.drawn_figures.scenes import make_scene, scene_truth
from harcache.stages.persons.boxes import overlaps
from harcache.stages.persons.tracking import follow_persons, link_boxes, link_persons


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


def test_a_track_goes_on_only_where_boxes_overlap() -> None:
    links = follow_persons([_frame(_box(10)), _frame(_box(10)), _frame(_box(200))])
    assert links.tolist() == [[0, 0, -1], [-1, -1, 0]]


def test_who_is_seen_longest_comes_first_and_no_frame_keeps_more_than_it_may() -> None:
    frames = [_frame(_box(10)), _frame(_box(10), _box(200)), _frame(_box(10), _box(200), _box(400))]
    frames += [_frame(_box(200), _box(400)), _frame(_box(200))]
    # The third person is dropped in frame 2 alone: in frame 3 the first one has left.
    assert link_persons(frames, 2).tolist() == [[-1, 1, 1, 0, 0], [0, 0, 0, 1, -1]]
    assert link_persons(frames, 9).tolist()[2] == [-1, -1, 2, 1, -1]


def test_who_leaves_and_comes_back_has_a_slot_in_every_frame() -> None:
    away = range(40, 60)
    seen = [
        _frame(_box(400), *([] if t in away else [_box(10 + t if t < 40 else 310 - t)])) for t in range(100)
    ]
    bystander, actor = link_persons(seen, 2).tolist()
    assert bystander == [0] * 100
    assert actor == [1] * 40 + [-1] * 20 + [1] * 40


def test_who_comes_back_among_others_has_a_slot_in_every_frame() -> None:
    # Two were lost, so that who came back is not certain: every frame has its poses all the same.
    seen = [[_box(400)], [_box(10), _box(400)], [_box(10), _box(400)], [_box(400), _box(200)], [_box(400)]]
    links = link_persons([_frame(*found) for found in [*seen, [_box(90), _box(400)]]], 2)
    assert (links >= 0).sum(axis=0).tolist() == [1, 2, 2, 2, 1, 2]


def test_a_lone_box_follows_the_lone_person_however_fast() -> None:
    places = [10, 400, 90, 300, 10, 250]
    assert link_persons([_frame(_box(x)) for x in places], 2).tolist() == [[0] * 6]
    beside = [_frame(_box(x), _box(500, width=60)) for x in places]
    assert link_persons(beside, 2).tolist() == [[1] * 6, [0] * 6]


@pytest.mark.parametrize("unseen", [1, 30])
def test_a_lone_box_follows_the_lone_person_after_a_gap(unseen: int) -> None:
    links = link_persons([_frame(_box(10)), *[_frame()] * unseen, _frame(_box(400))], 2)
    assert links.tolist() == [[0, *[-1] * unseen, 0]]


def test_as_many_fast_persons_as_there_were_follow_the_nearest() -> None:
    rows, frames = [], []
    for t in range(8):
        found = [_box(60 * t, 20), _box(60 * t, 200)]
        rows.append(t % 2)
        frames.append(_frame(*(found[::-1] if rows[-1] else found)))
    links = link_persons(frames, 2).tolist()
    assert sorted(links) == sorted([rows, [1 - row for row in rows]])


def test_nobody_follows_whom_they_are_seen_with() -> None:
    # Who is missed while another one enters is not that other one.
    frames = [_frame(_box(10)), _frame(_box(400)), _frame(_box(10), _box(400)), _frame(_box(10), _box(400))]
    assert link_persons(frames, 2).tolist() == [[0, -1, 0, 0], [-1, 0, 1, 1]]


def test_false_boxes_push_nobody_out() -> None:
    rng = np.random.default_rng(0)
    frames, real = [], []
    for t in range(200):
        found = [box for box in (_box(20 + t % 9), _box(400 + t % 7)) if rng.random() > 0.1]
        real.append(len(found))
        frames.append(_frame(*found, _box(float(rng.uniform(80, 340)), 300, 30, 30, 0.5)))
    links = link_persons(frames, 2)
    for t, (boxes, count) in enumerate(zip(frames, real, strict=True)):
        assert set(range(count)) <= set(links[:, t].tolist()), boxes


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


_FRAMES = st.lists(st.lists(_ANYWHERE, max_size=5), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(frames=_FRAMES)
def test_every_box_is_in_exactly_one_track(frames: list[list[list[float]]]) -> None:
    everybody = follow_persons([_frame(*found) for found in frames])
    for t, found in enumerate(frames):
        # A track has one entry a frame, so that it can't hold two.
        assert sorted(row for row in everybody[:, t].tolist() if row >= 0) == list(range(len(found)))
    seen = (everybody >= 0).sum(axis=1)
    assert (seen > 0).all() and (np.diff(seen) <= 0).all()


@settings(max_examples=200, deadline=None)
@given(frames=_FRAMES, most=st.integers(1, 6))
def test_every_frame_shows_as_many_persons_as_it_may_each_once(
    frames: list[list[list[float]]], most: int
) -> None:
    links = link_persons([_frame(*found) for found in frames], most)
    assert len(links) <= most and (np.diff((links >= 0).sum(axis=1)) <= 0).all()
    for t, found in enumerate(frames):
        shown = [row for row in links[:, t].tolist() if row >= 0]
        assert len(set(shown)) == len(shown) == min(len(found), most)


@settings(max_examples=200, deadline=None)
@given(frames=_FRAMES, most=st.integers(1, 6))
def test_who_shares_no_slot_has_the_links_of_before(frames: list[list[list[float]]], most: int) -> None:
    boxes = [_frame(*found) for found in frames]
    links = link_boxes(boxes, most)
    assert links.shared or links.rows.tolist() == follow_persons(boxes)[:most].tolist()


@settings(max_examples=100, deadline=None)
@given(missed=st.lists(st.sets(st.integers(0, 2)), max_size=20), most=st.integers(1, 4))
def test_where_nobody_enters_later_no_slot_is_shared(missed: list[set[int]], most: int) -> None:
    there = [_box(10), _box(200), _box(400)]
    frames = [_frame(*there)] + [_frame(*(there[i] for i in range(3) if i not in those)) for those in missed]
    links = link_boxes(frames, most)
    assert not links.shared or most < 3
    if most >= 3:
        assert links.rows.tolist() == follow_persons(frames).tolist()


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=10), seed=st.integers(0, 999))
def test_the_order_of_a_frames_boxes_does_not_matter(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = [
        _frame(*[_box(*rng.uniform(0, 300, 2), *rng.uniform(20, 120, 2), rng.uniform()) for _ in range(n)])
        for n in counts
    ]
    orders = [rng.permutation(n) for n in counts]
    one = link_persons(frames, 2)
    other = link_persons([found[order] for found, order in zip(frames, orders, strict=True)], 2)
    back = [
        [order[row] if row >= 0 else -1 for order, row in zip(orders, link, strict=True)] for link in other
    ]
    assert one.tolist() == back

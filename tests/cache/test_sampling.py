"""Promises of cache.sampling: test samples as published, train samples pure, stored frames even."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache.cache.sampling import (
    clip_keys,
    clip_rng,
    draw_chances,
    draw_crops,
    draw_samples,
    epoch_keys,
    rgb_positions,
    stored_frames,
    uniform_sample_test,
    uniform_sample_train,
)
from harcache.pipeline.base.errors import HarcacheError

frames = st.integers(1, 3000)


def released_test_sample(n: int, length: int, clips: int) -> np.ndarray:
    """The rules of the released sampler, written out clip by clip on NumPy's global legacy generator."""
    state = np.random.get_state()
    np.random.seed(255)
    rows = []
    for clip in range(clips):
        if n < length:
            start = clip if n < clips else clip * n // clips
            taken = [start + i for i in range(length)]
        elif n < 2 * length:
            grows = set(np.random.choice(length + 1, n - length, replace=False).tolist())
            offset, taken = 0, []
            for i in range(length):
                offset += i in grows
                taken.append(i + offset)
        else:
            edges = [i * n // length for i in range(length + 1)]
            sizes = np.array([b - a for a, b in pairwise(edges)])
            taken = [a + int(d) for a, d in zip(edges, np.random.randint(sizes), strict=False)]
        rows.append([i % n for i in taken])
    np.random.set_state(state)
    return np.array(rows)


def test_the_test_sample_is_the_released_one_for_every_length_to_300():
    for n in range(1, 301):
        np.testing.assert_array_equal(uniform_sample_test(n, 48), released_test_sample(n, 48, 1))


@given(n=frames, length=st.sampled_from([1, 8, 16, 48, 100]), clips=st.sampled_from([1, 3, 10]))
def test_the_test_sample_is_the_released_one_for_any_clip_length_and_number_of_clips(n, length, clips):
    np.testing.assert_array_equal(
        uniform_sample_test(n, length, clips), released_test_sample(n, length, clips)
    )


def test_the_test_sample_never_changes_with_a_new_numpy():
    digest = hashlib.blake2b(digest_size=8)
    for n in range(1, 400):
        digest.update(uniform_sample_test(n, 48, 10).astype("<i8").tobytes())
    assert digest.hexdigest() == "a41bfc5ac86d9557"


def test_testing_neither_reads_nor_moves_the_global_generator():
    np.random.seed(7)
    expected = np.random.rand()
    np.random.seed(7)
    uniform_sample_test(300, 48)
    assert np.random.rand() == expected


@given(n=frames, length=st.integers(1, 120), seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
def test_a_train_sample_is_valid_and_takes_at_most_one_frame_of_each_bin(n, length, seed, epoch):
    taken = uniform_sample_train(n, length, clip_rng(seed, epoch, "clip"))
    assert taken.shape == (length,)
    assert taken.min() >= 0 and taken.max() < n
    if n >= length:
        assert (np.diff(taken) > 0).all()
    else:
        assert (np.diff(taken) % n == 1 % n).all()
    if n >= 2 * length:
        np.testing.assert_array_equal(((taken + 1) * length - 1) // n, np.arange(length))


def test_a_train_sample_can_take_every_frame_of_a_clip():
    for n in (20, 60, 100):
        seen = {int(i) for e in range(300) for i in uniform_sample_train(n, 48, clip_rng(0, e, "a"))}
        assert seen == set(range(n))


def _drawn(lengths: list[int], clip_len: int, ids: list[str], seed: int = 0, epoch: int = 0) -> np.ndarray:
    return draw_samples(np.array(lengths), clip_len, epoch_keys(seed, epoch, clip_keys(ids)))


@given(
    lengths=st.lists(frames, min_size=1, max_size=40),
    clip_len=st.integers(1, 120),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 10**6),
)
def test_a_clips_train_sample_does_not_depend_on_the_clips_drawn_with_it(lengths, clip_len, seed, epoch):
    ids = [f"clip {number}" for number in range(len(lengths))]
    together = _drawn(lengths, clip_len, ids, seed, epoch)
    for length, id, sample in zip(lengths, ids, together, strict=True):
        np.testing.assert_array_equal(_drawn([length], clip_len, [id], seed, epoch), sample[None])


def test_many_clips_are_each_sampled_within_their_frames():
    lengths = np.random.default_rng(0).integers(1, 300, 5000)
    ids = [str(number) for number in range(5000)]
    together = _drawn(lengths.tolist(), 48, ids)
    assert (together >= 0).all() and (together < lengths[:, None]).all()
    for number in (0, 2047, 2048, 4999):
        np.testing.assert_array_equal(
            together[number], _drawn([lengths[number]], 48, ids[number : number + 1])[0]
        )


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 1}, {"ids": ["b"]}, {"seed": 2, "epoch": 1}])
def test_another_seed_epoch_or_clip_is_sampled_otherwise(other):
    first = _drawn([300], 48, ["a"], seed=1, epoch=2)
    assert not np.array_equal(_drawn([300], 48, **{"ids": ["a"], "seed": 1, "epoch": 2} | other), first)


@pytest.mark.parametrize("length", [30, 48, 70, 200])
def test_all_clips_together_take_every_frame_as_often_as_chance_would_have_it(length):
    count = 20_000
    taken = _drawn([length] * count, 48, [str(number) for number in range(count)])
    often = np.bincount(taken.ravel(), minlength=length) / count
    rng = np.random.default_rng(1)
    if length < 48:
        expected = np.full(length, 48 / length)
    elif length < 96:
        places = rng.random((count, 49)).argsort(1) < length - 48
        expected = np.bincount((np.arange(48) + places.cumsum(1)[:, :-1]).ravel(), minlength=length) / count
    else:
        edges = np.arange(49) * length // 48
        expected = np.repeat(1 / np.diff(edges), np.diff(edges))
    # Seven standard deviations of the difference of two such frequencies.
    np.testing.assert_allclose(often, expected, atol=7 * (0.5 / count) ** 0.5)


def test_chances_are_even_and_independent_of_the_frames():
    keys = epoch_keys(0, 0, clip_keys([str(number) for number in range(20_000)]))
    chances = draw_chances(keys)
    assert chances.min() >= 0 and chances.max() < 1
    np.testing.assert_allclose(np.histogram(chances, 10, (0, 1))[0] / len(keys), 0.1, atol=0.015)
    starts = draw_samples(np.full(len(keys), 40), 48, keys)[:, 0]
    assert abs(np.corrcoef(chances, starts)[0, 1]) < 0.05


def test_train_samples_never_change_with_a_new_numpy():
    lengths = list(range(1, 400))
    taken = _drawn(lengths, 48, [str(length) for length in lengths], seed=3, epoch=4)
    assert hashlib.blake2b(taken.astype("<i8").tobytes(), digest_size=8).hexdigest() == "97009bc845753777"


def test_a_test_sample_that_is_kept_can_not_be_spoilt():
    with pytest.raises(ValueError, match="read-only"):
        uniform_sample_test(100, 48)[0, 0] = 7


@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6), clip=st.text())
def test_a_clips_generator_depends_on_its_arguments_alone(seed, epoch, clip):
    np.random.rand()
    draws = clip_rng(seed, epoch, clip).random(4)
    np.testing.assert_array_equal(draws, clip_rng(seed, epoch, clip).random(4))
    for other in (
        clip_rng(seed + 1, epoch, clip),
        clip_rng(seed, epoch + 1, clip),
        clip_rng(seed, epoch, clip + "x"),
    ):
        assert not np.array_equal(draws, other.random(4))


@given(n=frames, most=st.integers(1, 500))
def test_stored_frames_are_even_and_never_too_many(n, most):
    rows = stored_frames(n, most)
    assert len(rows) == min(n, most)
    gaps = np.diff(np.concatenate([[-1 - rows[0]], rows, [2 * n - 1 - rows[-1]]]))
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 2
    np.testing.assert_array_equal(stored_frames(n), np.arange(n))


def test_rgb_frames_are_every_third_of_the_48():
    np.testing.assert_array_equal(rgb_positions(48, 16), np.arange(0, 48, 3))
    np.testing.assert_array_equal(rgb_positions(32, 16), np.arange(0, 32, 2))


def test_rgb_frames_that_do_not_divide_the_sample_are_refused():
    with pytest.raises(HarcacheError, match="48 frames cannot give 15 RGB frames"):
        rgb_positions(48, 15)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: stored_frames(0),
        lambda: uniform_sample_test(0, 48),
        lambda: uniform_sample_train(0, 48, clip_rng(0, 0, "a")),
        lambda: _drawn([5, 0], 48, ["a", "b"]),
    ],
)
def test_an_empty_clip_is_refused(draw):
    with pytest.raises(HarcacheError, match="a clip of 0 frames cannot be sampled"):
        draw()


def test_storing_no_frames_is_refused():
    with pytest.raises(HarcacheError, match="max_frames is 0"):
        stored_frames(10, 0)


def test_random_crops_lie_inside_and_have_the_areas_and_shapes_asked_for():
    keys = epoch_keys(0, 0, clip_keys([f"clip{n}" for n in range(2000)]))
    crops = draw_crops(keys, 0.56)
    x, y, width, height = crops.T.astype(float)
    assert crops.dtype == np.float32
    assert (np.minimum(x, y) >= 0).all() and (np.maximum(x + width, y + height) <= 1 + 1e-6).all()
    assert 0.56 - 1e-5 <= (width * height).min() < 0.58 and 0.98 < (width * height).max() <= 1
    assert 3 / 4 - 1e-5 <= (width / height).min() < 0.8 and 1.25 < (width / height).max() <= 4 / 3 + 1e-5
    assert abs((width * height).mean() - 0.78) < 0.01
    np.testing.assert_array_equal(draw_crops(keys[7:8], 0.56), crops[7:8])
    np.testing.assert_allclose(draw_crops(keys, 1.0), [[0, 0, 1, 1]] * 2000, atol=1e-6)

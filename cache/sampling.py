"""Which frames of a clip are stored, and which of those a training or test sample takes.

Every draw is a pure function of its arguments, so a batch does not depend on workers, ranks or what was read
before. Training hashes counters instead of asking a generator, so that many clips are drawn at once.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harcache.pipeline.base.errors import HarcacheError

__all__ = [
    "clip_keys",
    "clip_rng",
    "draw_chances",
    "draw_crops",
    "draw_samples",
    "epoch_keys",
    "rgb_positions",
    "stored_frames",
    "uniform_sample_test",
    "uniform_sample_train",
]

# The released EPAM-Net and PYSKL seed every test clip so; published accuracies rest on these very frames.
_TEST_SEED = 255
# Of SplitMix64 (Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014).
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_ASPECT = 4 / 3
# Clips drawn at a time: their random numbers fit in the processor's cache, which makes it twice as fast.
_BLOCK = 2048


def stored_frames(num_frames: int, max_frames: int | None = None) -> NDArray[np.int64]:
    """Return which frames of a clip the stores hold: (rows,) int64, rising, numbered from the clip's start.

    All frames, or the middles of ``max_frames`` equal spans when the clip is longer than that.

    Raises:
        HarcacheError: the clip has no frames, or ``max_frames`` is under 1.
    """
    _check_frames(num_frames)
    if max_frames is None or num_frames <= max_frames:
        return np.arange(num_frames)
    if max_frames < 1:
        raise HarcacheError(
            f"max_frames is {max_frames}; set it to 1 or more, or to null to keep every frame"
        )
    return (2 * np.arange(max_frames) + 1) * num_frames // (2 * max_frames)


def rgb_positions(clip_len: int, rgb_frames: int) -> NDArray[np.int64]:
    """Return the positions of the RGB frames within a sample: (rgb_frames,); 0, 3, ..., 45 for 16 of 48.

    Raises:
        HarcacheError: ``clip_len`` is not a multiple of ``rgb_frames`` (paper, section 3: one of every N/M).
    """
    if rgb_frames < 1 or clip_len < 1 or clip_len % rgb_frames:
        raise HarcacheError(
            f"a sample of {clip_len} frames cannot give {rgb_frames} RGB frames; "
            f"set clip_len to a multiple of rgb_frames, such as 48 and 16"
        )
    return np.arange(0, clip_len, clip_len // rgb_frames)


def clip_rng(seed: int, epoch: int, clip: str) -> np.random.Generator:
    """Return the random generator of one clip (by its id) in one epoch; equal arguments give equal draws."""
    key = int.from_bytes(hashlib.blake2b(clip.encode(), digest_size=16).digest(), "little")
    return np.random.default_rng([seed, epoch, key])


def clip_keys(ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return what stands for each clip's id in draws: (n,)."""
    digests = b"".join(hashlib.blake2b(id.encode(), digest_size=8).digest() for id in ids)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def epoch_keys(seed: int, epoch: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return what clips' draws in one epoch depend on: (n,), from their ``clip_keys`` (n,)."""
    return _mix(keys + clip_keys([f"{seed} {epoch}"]))


def draw_chances(keys: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Draw a number in [0, 1) for each of the ``epoch_keys`` (n,), independent of its sample's frames."""
    return (_mix(keys) >> np.uint64(11)) * np.float64(2.0**-53)


def draw_crops(keys: NDArray[np.uint64], least_area: float) -> NDArray[np.float32]:
    """Draw a box in the unit square for each of the ``epoch_keys`` (n,): (n, 4) float32 x, y, width, height.

    Its area is even in ``least_area``..1, its width by its height in 3/4..4/3, even on a scale of logarithms;
    independent of the clip's other draws. These are PYSKL's random resized crops.
    """
    numbers = (_random_numbers(_mix(~keys), 4) >> np.uint64(11)) * np.float64(2.0**-53)
    area = least_area + (1 - least_area) * numbers[:, 0]
    most = np.minimum(np.log(_ASPECT), -np.log(area))  # more would leave the square
    aspect = np.exp(most * (2 * numbers[:, 1] - 1))
    sides = np.minimum(np.sqrt(np.stack([area * aspect, area / aspect], 1)), 1)
    return np.concatenate([(1 - sides) * numbers[:, 2:], sides], 1).astype(np.float32)


def draw_samples(num_frames: NDArray[np.int64], clip_len: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Draw a training sample of every clip: (n, clip_len) int64, row i rising in [0, num_frames[i]).

    The frames are spread evenly over a clip: one of each of ``clip_len`` bins, or, for a clip of fewer than
    two a bin, all but some left out at random. A clip shorter than ``clip_len`` gives consecutive frames
    from a random start and begins again at its end. ``keys`` (n,) are the clips' ``epoch_keys``.

    Raises:
        HarcacheError: a clip has no frames.
    """
    _check_frames(int(num_frames.min(initial=1)))
    samples = np.empty((len(keys), clip_len), np.int64)
    for first in range(0, len(keys), _BLOCK):
        block = slice(first, first + _BLOCK)
        lengths, numbers = num_frames[block], _random_numbers(keys[block], clip_len + 1)
        short, sparse = lengths < clip_len, lengths >= 2 * clip_len
        for kind, draw in ((short, _in_a_row), (sparse, _one_a_bin), (~short & ~sparse, _some_left_out)):
            if kind.any():
                samples[block][kind] = draw(lengths[kind, None], numbers[kind])
    return samples


def uniform_sample_train(num_frames: int, clip_len: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the training sample of one clip from a generator: (clip_len,) int64; see ``draw_samples``."""
    key = rng.integers(2**64, size=1, dtype=np.uint64)
    return draw_samples(np.array([num_frames]), clip_len, key)[0]


# A test sample depends on few numbers, and a dataset's clips have few lengths.
@lru_cache(maxsize=4096)
def uniform_sample_test(num_frames: int, clip_len: int, num_clips: int = 1) -> NDArray[np.int64]:
    """Return the frames that testing takes: (num_clips, clip_len) int64 in [0, num_frames).

    They depend on the numbers alone, and equal those of the released implementation: NumPy's legacy
    generator, seeded with 255 once for all ``num_clips``. Clips shorter than ``clip_len`` begin again at
    their end. The array is kept and can't be written to.

    Raises:
        HarcacheError: the clip has no frames.
    """
    _check_frames(num_frames)
    samples = _released(num_frames, clip_len, num_clips)
    samples.flags.writeable = False
    return samples


def _released(num_frames: int, clip_len: int, num_clips: int) -> NDArray[np.int64]:
    if num_frames >= clip_len:
        rng = np.random.RandomState(_TEST_SEED)
        return np.stack([_released_draw(num_frames, clip_len, rng) for _ in range(num_clips)])
    starts = np.arange(num_clips)
    if num_frames >= num_clips:
        starts = starts * num_frames // num_clips
    return (starts[:, None] + np.arange(clip_len)) % num_frames


def _released_draw(num_frames: int, clip_len: int, rng: np.random.RandomState) -> NDArray[np.int64]:
    if num_frames < 2 * clip_len:
        left_out = rng.choice(clip_len + 1, num_frames - clip_len, replace=False)
        return np.arange(clip_len) + np.bincount(left_out, minlength=clip_len + 1).cumsum()[:-1]
    edges = np.arange(clip_len + 1) * num_frames // clip_len
    return edges[:-1] + rng.randint(np.diff(edges))


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash numbers to numbers, one to one: the output function of SplitMix64."""
    for shift, factor in _MIX:
        values = (values ^ (values >> shift)) * factor
    return values ^ (values >> np.uint64(31))


def _random_numbers(keys: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """Return random numbers (n, count) that depend on the keys (n,) alone."""
    return _mix(keys[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GAMMA)


def _below(limits: NDArray[np.int64], numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Turn random numbers into ones in [0, limit); limits of videos' lengths are met evenly to 2**-20."""
    return limits * (numbers >> np.uint64(32)).astype(np.int64) >> 32


def _in_a_row(num_frames: NDArray[np.int64], numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
    clip_len = numbers.shape[1] - 1
    return (_below(num_frames, numbers[:, :1]) + np.arange(clip_len)) % num_frames


def _one_a_bin(num_frames: NDArray[np.int64], numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
    clip_len = numbers.shape[1] - 1
    edges = np.arange(clip_len + 1) * num_frames // clip_len
    return edges[:, :-1] + _below(np.diff(edges), numbers[:, 1:])


def _some_left_out(num_frames: NDArray[np.int64], numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Leave out the places before, between and after ``clip_len`` frames that got the least numbers."""
    clip_len = numbers.shape[1] - 1
    first_kept = np.take_along_axis(np.sort(numbers), num_frames - clip_len, axis=1)
    return np.arange(clip_len) + (numbers < first_kept).cumsum(1)[:, :-1]


def _check_frames(num_frames: int) -> None:
    if num_frames < 1:
        raise HarcacheError(f"a clip of {num_frames} frames cannot be sampled; leave it out of the manifest")

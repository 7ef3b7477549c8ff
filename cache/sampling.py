"""Which frames of a clip are stored, and which of those a training or test sample takes.

Every draw is a pure function of its arguments, so a batch does not depend on workers, ranks or what was read
before. The price is a small generator made anew for each clip (about 20 microseconds).
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import HarcacheError

__all__ = ["clip_rng", "rgb_positions", "stored_frames", "uniform_sample_test", "uniform_sample_train"]

# The released EPAM-Net and PYSKL seed every test clip so; published accuracies rest on these very frames.
_TEST_SEED = 255


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


def uniform_sample_train(num_frames: int, clip_len: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw ``clip_len`` frames spread evenly over a clip: (clip_len,) int64 in [0, num_frames), rising.

    A clip shorter than ``clip_len`` gives consecutive frames from a random start and begins again at its end.

    Raises:
        HarcacheError: the clip has no frames.
    """
    _check_frames(num_frames)
    if num_frames < clip_len:
        return (rng.integers(num_frames) + np.arange(clip_len)) % num_frames
    return _draw(num_frames, clip_len, rng)


def uniform_sample_test(num_frames: int, clip_len: int, num_clips: int = 1) -> NDArray[np.int64]:
    """Return the frames that testing takes: (num_clips, clip_len) int64 in [0, num_frames).

    They depend on the numbers alone, and equal those of the released implementation: NumPy's legacy
    generator, seeded with 255 once for all ``num_clips``. Clips shorter than ``clip_len`` begin again at
    their end.

    Raises:
        HarcacheError: the clip has no frames.
    """
    _check_frames(num_frames)
    if num_frames >= clip_len:
        rng = np.random.RandomState(_TEST_SEED)
        return np.stack([_draw(num_frames, clip_len, rng) for _ in range(num_clips)])
    starts = np.arange(num_clips)
    if num_frames >= num_clips:
        starts = starts * num_frames // num_clips
    return (starts[:, None] + np.arange(clip_len)) % num_frames


def _draw(
    num_frames: int, clip_len: int, rng: np.random.Generator | np.random.RandomState
) -> NDArray[np.int64]:
    """Draw from a clip of at least ``clip_len`` frames: one a bin, or all but some left out at random."""
    if num_frames < 2 * clip_len:
        left_out = rng.choice(clip_len + 1, num_frames - clip_len, replace=False)
        return np.arange(clip_len) + np.bincount(left_out, minlength=clip_len + 1).cumsum()[:-1]
    edges = np.arange(clip_len + 1) * num_frames // clip_len
    integers = rng.randint if isinstance(rng, np.random.RandomState) else rng.integers
    return edges[:-1] + integers(np.diff(edges))


def _check_frames(num_frames: int) -> None:
    if num_frames < 1:
        raise HarcacheError(f"a clip of {num_frames} frames cannot be sampled; leave it out of the manifest")

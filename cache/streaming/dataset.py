"""Samples of clips, read row by row from one or both stores.

What a sample holds is a pure function of seed, epoch and clip, so that a batch does not depend on the process
that decodes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from harcache.cache.sampling import (
    clip_keys,
    draw_chances,
    draw_crops,
    draw_samples,
    epoch_keys,
    rgb_positions,
    uniform_sample_test,
)
from harcache.pipeline.base.errors import HarcacheError

__all__ = ["Batch", "ClipDataset", "RowReader", "Store"]

Batch = dict[str, Tensor]
"""What ``ClipDataset`` describes, stacked along a first axis."""


class RowReader(Protocol):
    """Reads rows of one array, as ``cache.shard_reader.ShardReader`` does, also in forked processes."""

    row_shape: tuple[int, ...]
    dtype: np.dtype

    def read_rows(self, rows: NDArray[np.int64], out: np.ndarray) -> None:
        """Decode row ``rows[i]`` into ``out[i]``."""


class Store(Protocol):
    """Says where clips lie and reads them, as ``cache.clip_store.ClipStore`` does."""

    def rows(self, id: str, /) -> slice:
        """Return the rows of a clip."""

    def reader(self, name: str, /) -> RowReader:
        """Return the reader of an array."""


class ClipDataset(Dataset[Batch]):
    """Samples of clips, from one or both stores; ``len`` is the number of clips times ``views``.

    ``clips`` are pairs of clip id and label. A sample has, as far as the stores are given,

    - rgb: (rgb_frames, H, W, 3) uint8, at every (clip_len / rgb_frames)-th of the sampled frames
    - heatmaps: (clip_len, K, h, w) uint8, 255 for a certain joint; or, with ``heatmap_source`` "keypoints",
      keypoints: (clip_len, persons, K, 3) float16, which ``prepare`` draws: for training that moves them;
      or, with "positions", positions: (clip_len, persons, K, 3) float32, for ``prepare_skeletons`` alone
    - label: int64; index: int64, which of ``clips`` it is; flip: bool, whether ``prepare`` is to mirror it
    - crop: (4,) float32, with ``crop`` alone: x, y, width and height of the part that ``prepare`` draws, 0..1

    With ``train`` frames, flips and crops (of at least ``crop`` of the area) are drawn from (seed, epoch,
    clip id); else frames are those of testing, ``views`` samples of each clip one after the other (ten-clip
    testing is ``views=10``), never flipped or cropped.

    Raises:
        HarcacheError: no clips or no stores, a clip that a store does not hold, stores that do not match, or
            a ``crop`` of anything but keypoints: only they can be moved before they are drawn.
    """

    def __init__(
        self,
        clips: Sequence[tuple[str, int]],
        *,
        rgb: Store | None = None,
        heatmaps: Store | None = None,
        heatmap_source: Literal["volume", "keypoints", "positions"] = "volume",
        train: bool,
        seed: int = 0,
        flip: float = 0.5,
        crop: float | None = None,
        clip_len: int = 48,
        rgb_frames: int = 16,
        views: int = 1,
    ) -> None:
        self.train, self.seed, self.flip, self.views = train, seed, flip, views
        self._crop = crop
        self._ids = [id for id, _ in clips]
        self._labels = [label for _, label in clips]
        self._keys = clip_keys(self._ids)
        self._clip_len = clip_len
        self._arrays: dict[str, _Array] = {}
        if rgb is not None:
            self._arrays["rgb"] = _array(rgb, "frames", self._ids, rgb_positions(clip_len, rgb_frames))
        if heatmaps is not None:
            name = "heatmaps" if heatmap_source == "volume" else heatmap_source
            self._arrays[name] = _array(heatmaps, heatmap_source, self._ids, np.arange(clip_len))
        self._lengths = _common_lengths(self._ids, self._arrays)
        if crop is not None and self._arrays.keys() != {"keypoints"}:
            raise HarcacheError(
                "only samples of keypoints can be cropped at random; set sample.heatmaps to 'keypoints' and "
                "leave crop out of recipes that read frames"
            )

    def __len__(self) -> int:
        return len(self._ids) * self.views

    def __getitem__(self, index: int) -> Batch:
        """Return one sample in memory of its own; a training set's as in epoch 0."""
        batch = self.allocate(1)
        self.read(index, 0, {name: value.numpy() for name, value in batch.items()}, 0)
        return {name: value[0] for name, value in batch.items()}

    def allocate(self, count: int) -> Batch:
        """Return memory for a batch of ``count`` samples."""
        batch = {
            name: torch.empty((count, *array.sample_shape), dtype=array.torch_dtype)
            for name, array in self._arrays.items()
        }
        if self._crop is not None:
            batch["crop"] = torch.empty(count, 4)
        for name, dtype in (("label", torch.int64), ("index", torch.int64), ("flip", torch.bool)):
            batch[name] = torch.empty(count, dtype=dtype)
        return batch

    def draw(self, index: int, epoch: int) -> tuple[NDArray[np.int64], bool]:
        """Return the frames of a sample, (clip_len,) numbered from the clip's first row, and its flip."""
        frames, flips = self.draws(np.array([index]), epoch)
        return frames[0], bool(flips[0])

    def draws(self, samples: NDArray[np.int64], epoch: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return frames (n, clip_len) and flips (n,) of samples (n,) as ``draw`` does, much faster."""
        clips, views = np.divmod(samples, self.views)
        lengths = self._lengths[clips]
        if self.train:
            keys = epoch_keys(self.seed, epoch, self._keys[clips])
            return draw_samples(lengths, self._clip_len, keys), draw_chances(keys) < self.flip
        frames = [
            uniform_sample_test(length, self._clip_len, self.views)[view]
            for length, view in zip(lengths.tolist(), views.tolist(), strict=True)
        ]
        return np.stack(frames), np.zeros(len(samples), bool)

    def crops(self, samples: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | None:
        """Return which part of the crop is drawn for samples (n,): (n, 4); None where it is all of it."""
        if self._crop is None:
            return None
        if not self.train:
            return np.tile(np.array([0, 0, 1, 1], np.float32), (len(samples), 1))
        return draw_crops(epoch_keys(self.seed, epoch, self._keys[samples // self.views]), self._crop)

    def read(self, index: int, epoch: int, batch: Mapping[str, np.ndarray], place: int) -> None:
        """Decode a sample into place ``place`` of a batch as ``allocate`` makes it."""
        self.decode(index, *self.draw(index, epoch), batch, place)
        crops = self.crops(np.array([index]), epoch)
        if crops is not None:
            batch["crop"][place] = crops[0]

    def decode(
        self,
        index: int,
        frames: NDArray[np.int64],
        flip: bool,
        batch: Mapping[str, np.ndarray],
        place: int,
    ) -> None:
        """Decode a sample whose frames and flip are drawn into place ``place`` of a batch."""
        clip = index // self.views
        for name, array in self._arrays.items():
            array.reader.read_rows(array.starts[clip] + frames[array.positions], batch[name][place])
        batch["label"][place] = self._labels[clip]
        batch["index"][place] = clip
        batch["flip"][place] = flip


@dataclass(frozen=True, slots=True)
class _Array:
    """One array of a store: where each clip begins in it and which of a sample's frames are read from it."""

    reader: RowReader
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    positions: NDArray[np.int64]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (len(self.positions), *self.reader.row_shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self.reader.dtype)).dtype


def _array(store: Store, name: str, ids: Sequence[str], positions: NDArray[np.int64]) -> _Array:
    rows = [store.rows(id) for id in ids]
    starts = np.array([each.start for each in rows], np.int64)
    lengths = np.array([each.stop - each.start for each in rows], np.int64)
    return _Array(store.reader(name), starts, lengths, positions)


def _common_lengths(ids: Sequence[str], arrays: Mapping[str, _Array]) -> NDArray[np.int64]:
    if not ids or not arrays:
        missing = "clips" if arrays else "stores"
        raise HarcacheError(f"a dataset without {missing} cannot be read; give at least one of them")
    first, *others = (array.lengths for array in arrays.values())
    for other in others:
        differing = np.flatnonzero(first != other)
        if differing.size:
            clip = differing[0]
            raise HarcacheError(
                f"clip '{ids[clip]}' has {first[clip]} RGB frames and {other[clip]} heatmaps; "
                f"make both stores again from the same manifest and max_frames"
            )
    return first

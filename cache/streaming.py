"""Batches for training straight from the stores: threads decode rows into memory that is used again.

A batch is a pure function of seed, epoch and place, so neither threads nor ranks change it and training
goes on in mid-epoch. The price of reused memory: on the CPU a batch is overwritten soon after it was taken.
"""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cache.sampling import clip_rng, rgb_positions, uniform_sample_test, uniform_sample_train
from pipeline.errors import HarcacheError
from pipeline.keypoints import COCO_MIRRORED

__all__ = ["ClipDataset", "ClipLoader", "RowReader", "Store", "prepare"]

_RGB_MEAN = (123.675, 116.28, 103.53)
_RGB_STD = (58.395, 57.12, 57.375)

Batch = dict[str, Tensor]


class RowReader(Protocol):
    """Reads rows of one array, as ``cache.shard_reader.ShardReader`` does, from many threads at once."""

    row_shape: tuple[int, ...]

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
    - heatmaps: (clip_len, K, h, w) uint8, 255 for a certain joint
    - label: int64; index: int64, which of ``clips`` it is; flip: bool, whether ``prepare`` is to mirror it

    With ``train`` frames and flips are drawn from (seed, epoch, clip id); else frames are those of testing,
    ``views`` samples of each clip one after the other (ten-clip testing is ``views=10``), never flipped.

    Raises:
        HarcacheError: no clips or no stores, a clip that a store does not hold, or stores that do not match.
    """

    def __init__(
        self,
        clips: Sequence[tuple[str, int]],
        *,
        rgb: Store | None = None,
        heatmaps: Store | None = None,
        train: bool,
        seed: int = 0,
        flip: float = 0.5,
        clip_len: int = 48,
        rgb_frames: int = 16,
        views: int = 1,
    ) -> None:
        self.train, self.seed, self.flip, self.views = train, seed, flip, views
        self._ids = [id for id, _ in clips]
        self._labels = [label for _, label in clips]
        self._clip_len = clip_len
        self._arrays: dict[str, _Array] = {}
        if rgb is not None:
            self._arrays["rgb"] = _array(rgb, "frames", self._ids, rgb_positions(clip_len, rgb_frames))
        if heatmaps is not None:
            self._arrays["heatmaps"] = _array(heatmaps, "volume", self._ids, np.arange(clip_len))
        self._lengths = _common_lengths(self._ids, self._arrays)

    def __len__(self) -> int:
        return len(self._ids) * self.views

    def __getitem__(self, index: int) -> Batch:
        """Return one sample in memory of its own; a training set's as in epoch 0."""
        batch = self.allocate(1)
        self.read(index, 0, {name: value.numpy() for name, value in batch.items()}, 0)
        return {name: value[0] for name, value in batch.items()}

    def allocate(self, count: int, pinned: bool = False) -> Batch:
        """Return memory for a batch of ``count`` samples, where asked pinned for copies to a GPU."""
        batch = {
            name: torch.empty((count, *array.sample_shape), dtype=torch.uint8, pin_memory=pinned)
            for name, array in self._arrays.items()
        }
        for name, dtype in (("label", torch.int64), ("index", torch.int64), ("flip", torch.bool)):
            batch[name] = torch.empty(count, dtype=dtype, pin_memory=pinned)
        return batch

    def draw(self, index: int, epoch: int) -> tuple[NDArray[np.int64], bool]:
        """Return the frames of a sample, (clip_len,) numbered from the clip's first row, and its flip."""
        clip, view = divmod(index, self.views)
        length = int(self._lengths[clip])
        if not self.train:
            return uniform_sample_test(length, self._clip_len, self.views)[view], False
        rng = clip_rng(self.seed, epoch, self._ids[clip])
        flip = rng.random() < self.flip
        return uniform_sample_train(length, self._clip_len, rng), flip

    def read(self, index: int, epoch: int, batch: Mapping[str, np.ndarray], place: int) -> None:
        """Decode a sample into place ``place`` of a batch as ``allocate`` makes it."""
        frames, flip = self.draw(index, epoch)
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


class ClipLoader:
    """Batches of a dataset, decoded ahead by threads; each iteration is one epoch, or the rest of one.

    ``batch_size`` counts the samples of all ``ranks`` together; rank r takes every ``ranks``-th, from its
    r-th on. The last batch of an epoch may be smaller; the epoch's first samples fill it up to a multiple of
    ``ranks``. A training set is shuffled by (seed, epoch); another comes in order, each time from the start.

    Batches hold the dataset's samples stacked along a first axis. On a GPU (``device``) they are in fresh
    memory; on the CPU it is used again once two more batches are taken or another iteration begins.

    Raises:
        HarcacheError: ``batch_size`` is no multiple of ``ranks``. What fails in a thread, ``next`` raises.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        *,
        threads: int = 2,
        prefetch: int = 2,
        device: str | torch.device = "cpu",
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % ranks:
            raise HarcacheError(f"batch_size is {batch_size}; set it to a multiple of the {ranks} processes")
        self._dataset, self._batch_size = dataset, batch_size
        self._threads, self._prefetch = threads, prefetch
        self._device = torch.device(device)
        self._rank, self._ranks = rank, ranks
        self._epoch, self._next_batch = 0, 0
        self._slots: list[_Slot] = []
        self._running: Generator[Batch, None, None] | None = None

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return -(-len(self._dataset) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        # An iteration left in the middle still has threads that write into the slots.
        if self._running is not None:
            self._running.close()
        self._running = self._batches()
        return self._running

    def state_dict(self) -> dict[str, int]:
        """Return where training is: the epoch and batch to come, and what the order of batches depends on."""
        return {"epoch": self._epoch, "batch": self._next_batch, **self._order_depends_on()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from ``state_dict``; raise HarcacheError when the batches would be others than then."""
        for key, value in self._order_depends_on().items():
            if state.get(key) != value:
                raise HarcacheError(
                    f"the checkpoint was made with {key} {state.get(key)} and training now has {value}; "
                    f"restore that, or start training again"
                )
        self._epoch, self._next_batch = state["epoch"], state["batch"]

    def _order_depends_on(self) -> dict[str, int]:
        return {
            "seed": self._dataset.seed,
            "samples": len(self._dataset),
            "batch_size": self._batch_size,
        }

    def _batches(self) -> Generator[Batch, None, None]:
        epoch, first, end = self._epoch, self._next_batch, len(self)
        order = self._order(epoch)
        started: deque[tuple[_Slot, list[Future[None]]]] = deque()
        with ThreadPoolExecutor(self._threads, "decode") as pool:
            try:
                for number in range(first, end + self._prefetch):
                    if number < end:
                        started.append(self._start(pool, epoch, number, order))
                    if number >= first + self._prefetch:
                        batch = self._finish(*started.popleft())
                        self._advance(epoch, number - self._prefetch + 1)
                        yield batch
            finally:
                for future in (future for _, futures in started for future in futures):
                    future.cancel()

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return every sample of an epoch once, (n,), and some again so that ``ranks`` divides n."""
        count = len(self._dataset)
        order = np.arange(count)
        if self._dataset.train:
            order = clip_rng(self._dataset.seed, epoch, "").permutation(count)
        return np.resize(order, -(-count // self._ranks) * self._ranks)

    def _start(
        self, pool: ThreadPoolExecutor, epoch: int, number: int, order: NDArray[np.int64]
    ) -> "tuple[_Slot, list[Future[None]]]":
        slot = self._slot(number)
        begin = number * self._batch_size
        samples = order[begin : begin + self._batch_size][self._rank :: self._ranks].tolist()
        read = self._dataset.read
        return slot, [
            pool.submit(read, sample, epoch, slot.arrays, place) for place, sample in enumerate(samples)
        ]

    def _slot(self, number: int) -> "_Slot":
        """Return the memory for a batch, once nobody reads from it any more."""
        on_gpu = self._device.type == "cuda"
        if not self._slots:
            # One is being worked on and one was just handed out when the last of the others is started.
            count = self._batch_size // self._ranks
            self._slots = [_Slot(self._dataset.allocate(count, on_gpu)) for _ in range(self._prefetch + 2)]
        slot = self._slots[number % len(self._slots)]
        if slot.copied is not None:
            slot.copied.synchronize()
        return slot

    def _finish(self, slot: "_Slot", futures: Sequence[Future[None]]) -> Batch:
        for future in futures:
            future.result()
        batch = {name: value[: len(futures)] for name, value in slot.tensors.items()}
        if self._device.type == "cpu":
            return batch
        moved = {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}
        if self._device.type == "cuda":
            slot.copied = torch.cuda.Event()
            slot.copied.record(torch.cuda.current_stream(self._device))
        return moved

    def _advance(self, epoch: int, next_batch: int) -> None:
        # Before the batch is handed out: Lightning never asks for more than the last one, and what it saves
        # while it works on that must point to the next epoch.
        if self._dataset.train:
            over = next_batch == len(self)
            self._epoch, self._next_batch = (epoch + 1, 0) if over else (epoch, next_batch)


class _Slot:
    """The memory of one batch, as tensors and as arrays, and when a GPU has copied it."""

    def __init__(self, tensors: Batch) -> None:
        self.tensors = tensors
        self.arrays = {name: value.numpy() for name, value in tensors.items()}
        self.copied: Any = None


def prepare(batch: Mapping[str, Tensor], device: str | torch.device | None = None) -> Batch:
    """Turn a batch into what the networks take, on ``device`` (default: where it is), in fresh memory.

    rgb becomes (B, 3, T, H, W) float32, normalised, and heatmaps (B, 17, T', h, w) float32 in 0..1, both laid
    out channels-last; label and index stay. Samples with flip are mirrored, left and right keypoints
    change places.
    """
    moved = {name: value.to(device or value.device, non_blocking=True) for name, value in batch.items()}
    flip = moved.pop("flip").view(-1, 1, 1, 1, 1)
    if "rgb" in moved:
        rgb = moved["rgb"]
        moved["rgb"] = _normalise(torch.where(flip, rgb.flip(3), rgb)).permute(0, 4, 1, 2, 3)
    if "heatmaps" in moved:
        heatmaps = moved["heatmaps"]
        mirrored = heatmaps[:, :, list(COCO_MIRRORED)].flip(4)
        frames = torch.where(flip, mirrored, heatmaps).flatten(0, 1)
        frames = frames.to(torch.float32, memory_format=torch.channels_last).div_(255)
        moved["heatmaps"] = frames.unflatten(0, heatmaps.shape[:2]).transpose(1, 2)
    return moved


def _normalise(rgb: Tensor) -> Tensor:
    """Normalise (..., W, 3) uint8 by channel, whole rows at a time: loops over 3 values are slow on a CPU."""
    width = rgb.shape[-2]
    mean = torch.tensor(_RGB_MEAN * width, device=rgb.device)
    std = torch.tensor(_RGB_STD * width, device=rgb.device)
    return rgb.flatten(-2).float().sub_(mean).div_(std).unflatten(-1, (width, 3))

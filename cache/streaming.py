"""Batches for training straight from the stores: processes decode rows into memory that is used again.

Processes, since threads take turns between rows; their shared memory is not of /dev/shm, which containers
keep small. A batch is a pure function of seed, epoch and place, so neither processes nor ranks change it and
training goes on in mid-epoch. The price of reused memory: on the CPU a batch is soon overwritten.
"""

import os
import signal
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from mmap import MADV_HUGEPAGE, mmap
from multiprocessing import get_context
from typing import Any, Literal, Protocol
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from harcache.cache.heatmaps import draw_heatmaps
from harcache.cache.input_wait import Waits, Work, measured, watch
from harcache.cache.sampling import (
    clip_keys,
    clip_rng,
    draw_chances,
    draw_crops,
    draw_samples,
    epoch_keys,
    rgb_positions,
    uniform_sample_test,
)
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.processes import end_with_parent
from harcache.pipeline.skeletons.joints import COCO_MIRRORED

__all__ = [
    "Batch",
    "ClipDataset",
    "ClipLoader",
    "RowReader",
    "Store",
    "constant",
    "default_workers",
    "prepare",
]

# Samples; more at once would hold up the first batch for longer and save no time.
_DRAWN_AT_ONCE = 1024
_CPU_WORKERS = 2
_RGB_MEAN = (123.675, 116.28, 103.53)
_RGB_STD = (58.395, 57.12, 57.375)

Batch = dict[str, Tensor]
"""What ``ClipDataset`` describes, stacked along a first axis."""

_Drawn = tuple[int, NDArray[np.int64], bool]
"""A sample, its frames, and whether it is mirrored."""

_Planned = tuple[tuple[int, int], list[_Drawn], NDArray[np.float32] | None]
"""A batch to come: its epoch and number, its samples, and their crops."""


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
      or, with "positions", positions: (clip_len, persons, K, 3) float32, for `cache.skeletons` alone
    - label: int64; index: int64, which of ``clips`` it is; flip: bool, whether ``prepare`` is to mirror it
    - crop: (4,) float32, with ``crop`` alone: x, y, width and height of what ``prepare`` is to draw, 0..1

    With ``train`` frames, flips and crops (of at least ``crop`` of the area) are drawn from (seed, epoch,
    clip id); else frames are those of testing, ``views`` samples of each clip one after the other (ten-clip
    testing is ``views=10``), never flipped or cropped.

    Raises:
        HarcacheError: no clips or no stores, a clip that a store does not hold, stores that do not match, or
            a ``crop`` of anything but keypoints, which alone can be moved before they are drawn.
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
        """Return frames (n, clip_len) and flips (n,) of samples (n,) as ``draw`` does, in much less time."""
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
        """Return what part of the crop is drawn of samples (n,): (n, 4); None where that is all of it."""
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


def default_workers(device: torch.device, processes: int = 1) -> int:
    """Return how many processes decode where so many ``processes`` of this machine train.

    A GPU gets all cores but one a trainer, which feeds it. On the CPU training needs them itself.
    """
    if device.type == "cpu":
        return _CPU_WORKERS
    return max(_CPU_WORKERS, len(os.sched_getaffinity(0)) // processes - 1)


class ClipLoader:
    """Batches of a dataset, decoded ahead by processes; each iteration is one epoch, or the rest of one.

    ``batch_size`` counts the samples of all ``ranks`` together; rank r takes every ``ranks``-th, from its
    r-th on. The last batch of an epoch may be smaller, and a rank's share of it one less than another's, or
    empty. A training set is shuffled by (seed, epoch); another comes in order, each time from the start.

    ``workers``: processes that decode, by default as ``default_workers`` says; ``prefetch``: batches ahead,
    with ``again`` also of the next iteration, while the last batches of one are worked on.
    Batches hold the dataset's samples stacked along a first axis. On a GPU (``device``) they are in fresh
    memory, copied beside the work on the batch before; on the CPU it is used again once two more batches are
    taken. ``waits`` sums up how long they were waited for; set it anew at will.

    Raises:
        HarcacheError: ``batch_size`` is no multiple of ``ranks``. What fails in a process, ``next`` raises;
            it raises HarcacheError too when a process was killed, or /dev/shm has no room for their locks.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        *,
        workers: int | None = None,
        prefetch: int = 2,
        again: bool = False,
        device: str | torch.device = "cpu",
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % ranks:
            raise HarcacheError(f"batch_size is {batch_size}; set it to a multiple of the {ranks} processes")
        self._dataset, self._batch_size = dataset, batch_size
        self._device, self._prefetch, self._again = torch.device(device), prefetch, again
        self._workers = workers or default_workers(self._device)
        # As few as keep all processes at work: each that is handed out wakes one beside whoever trains.
        self._shares = -(-self._workers // max(1, prefetch))
        self._rank, self._ranks = rank, ranks
        self._epoch, self._next_batch = 0, 0
        self._slots: list[_Slot] = []
        self._used = 0
        self._planned: Iterator[_Planned] = iter(())
        self._started: deque[_Started] = deque()
        self.waits = Waits()
        self._copies: Any = None
        self._pool: ProcessPoolExecutor | None = None
        self._running: Generator[Batch, None, None] | None = None

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return -(-len(self._dataset) // self._batch_size)

    def samples_in(self, number: int) -> int:
        """Return how many samples the ranks have together in batch ``number`` of an epoch."""
        return min(self._batch_size, len(self._dataset) - number * self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self._running is not None:
            self._running.close()
        if not self._dataset.train:
            self._next_batch = 0
        self._running = watch(self._batches(), self.waits, self._device)
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
        first = self._epoch, self._next_batch
        if not self._started or self._started[0].place != first:
            self._forget()
            self._planned = self._plan(*first)
        for _ in range(self._next_batch, len(self)):
            try:
                batch = self._take()
            except BaseException as error:
                self._forget()
                if not isinstance(error, BrokenProcessPool):
                    raise
                self._pool = None
                raise HarcacheError(
                    "a process that decodes batches was killed, perhaps as memory ran out; "
                    "use smaller batches or free memory, and start training again"
                ) from error
            self._advance()
            yield batch

    def _take(self) -> Batch:
        """Start what is to be decoded ahead, and wait for the next batch."""
        for planned in islice(self._planned, self._prefetch + 1 - len(self._started)):
            self._started.append(self._start(*planned))
        batch = self._finish(self._started[0])
        self._started.popleft()
        return batch

    def _forget(self) -> None:
        """Drop batches that were started and are not the next ones, once no process writes into them."""
        # Not where an iteration is closed: the garbage collector may close it in the thread that the
        # processes report to.
        wait([future for each in self._started for future in each.futures if not future.cancel()])
        self._started.clear()

    def _plan(self, epoch: int, first: int) -> Iterator[_Planned]:
        """Give the batches from number ``first`` of an epoch on: their place, and what is drawn of each."""
        while True:
            for number, (samples, crops) in zip(
                range(first, len(self)), self._drawn(epoch, first), strict=True
            ):
                yield (epoch, number), samples, crops
            if not self._again:
                return
            epoch, first = epoch + 1, 0

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return every sample of an epoch once, (n,)."""
        count = len(self._dataset)
        order = np.arange(count)
        if self._dataset.train:
            order = clip_rng(self._dataset.seed, epoch, "").permutation(count)
        return order

    def _drawn(self, epoch: int, first: int) -> Iterator[tuple[list[_Drawn], NDArray[np.float32] | None]]:
        """Give this rank's samples with frames and flips, a list a batch, from number ``first`` on."""
        size = self._batch_size // self._ranks
        samples = self._order(epoch)[self._rank :: self._ranks][first * size :]
        at_once = -(-_DRAWN_AT_ONCE // size) * size
        for block in (samples[i : i + at_once] for i in range(0, len(samples), at_once)):
            frames, flips = self._dataset.draws(block, epoch)
            crops = self._dataset.crops(block, epoch)
            drawn = list(zip(block.tolist(), frames, flips.tolist(), strict=True))
            for i in range(0, len(drawn), size):
                yield drawn[i : i + size], None if crops is None else crops[i : i + size]
        # Where other ranks have one more.
        if len(samples) <= size * (len(self) - first - 1):
            yield [], None

    def _start(
        self, place: tuple[int, int], samples: list[_Drawn], crops: NDArray[np.float32] | None
    ) -> "_Started":
        """Have the processes decode a batch, in equal shares."""
        self._pool = self._pool or self._make_pool()
        number = self._used % len(self._slots)
        self._used += 1
        slot = self._slots[number]
        if slot.copied is not None:
            slot.copied.synchronize()
        if crops is not None:
            slot.arrays["crop"][: len(crops)] = crops
        share = max(1, -(-len(samples) // self._shares))
        futures = [
            self._pool.submit(_decode, number, first, samples[first : first + share])
            for first in range(0, len(samples), share)
        ]
        return _Started(place, slot, futures)

    def _make_pool(self) -> ProcessPoolExecutor:
        # One is being worked on and one was just handed out when the last of the others is started.
        batch, pinned = self._dataset.allocate(self._batch_size // self._ranks), self._device.type == "cuda"
        self._slots = [_Slot(batch, pinned) for _ in range(self._prefetch + 2)]
        arrays = [slot.arrays for slot in self._slots]
        try:
            # Forked, so that the dataset and the slots are theirs without a copy.
            return ProcessPoolExecutor(self._workers, get_context("fork"), _adopt, (self._dataset, arrays))
        except OSError as error:
            raise HarcacheError(
                f"no process that decodes batches can be started ({error.strerror}): their locks take 64 KiB "
                "of /dev/shm; make room there, or start the container with --shm-size=1m or more"
            ) from error

    def _finish(self, started: "_Started") -> Batch:
        done, slot = [future.result() for future in started.futures], started.slot
        self.waits.decode += sum(work.busy - work.disk for work in done) / self._workers
        self.waits.disk += sum(work.disk for work in done) / self._workers
        batch = {name: value[: sum(work.samples for work in done)] for name, value in slot.tensors.items()}
        if self._device.type == "cuda":
            return self._copy(slot, batch)
        return {name: value.to(self._device) for name, value in batch.items()}

    def _copy(self, slot: "_Slot", batch: Batch) -> Batch:
        """Copy a batch to the GPU on a stream of its own: the step before may still be at work."""
        self._copies = self._copies or torch.cuda.Stream(self._device)
        working = torch.cuda.current_stream(self._device)
        begun, slot.copied = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._copies):
            begun.record()
            moved = {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}
            slot.copied.record()
        if slot.copying is not None:
            self.waits.transfer += slot.copying[0].elapsed_time(slot.copying[1]) / 1000
        slot.copying = begun, slot.copied
        working.wait_event(slot.copied)
        for value in moved.values():
            value.record_stream(working)
        return moved

    def _advance(self) -> None:
        # Before the batch is handed out: what is saved while the last one is worked on must point to the
        # next epoch.
        self._next_batch += 1
        if self._next_batch == len(self):
            self._epoch, self._next_batch = self._epoch + 1, 0


class _Slot:
    """The memory of one batch, as tensors and as arrays, and when a GPU has copied it."""

    def __init__(self, like: Batch, pinned: bool) -> None:
        self.tensors = {name: _shared(value) for name, value in like.items()}
        self.arrays = {name: value.numpy() for name, value in self.tensors.items()}
        self.copied: Any = None
        self.copying: Any = None  # events around the last copy
        if pinned:
            cuda = torch.cuda.cudart()
            for value in self.tensors.values():
                torch.cuda.check_error(cuda.cudaHostRegister(value.data_ptr(), value.nbytes, 0))
                finalize(self, cuda.cudaHostUnregister, value.data_ptr())


@dataclass(frozen=True, slots=True)
class _Started:
    """A batch that is being decoded: its epoch and number, its memory, and the processes' shares of it."""

    place: tuple[int, int]
    slot: _Slot
    futures: list[Future[Work]]


def _shared(like: Tensor) -> Tensor:
    """Return memory for such a tensor that forked processes share, in huge pages: half as many faults."""
    memory = mmap(-1, like.nbytes)
    # A kernel may be built without.
    with suppress(OSError):
        memory.madvise(MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape)


_adopted: tuple[ClipDataset, Sequence[Mapping[str, np.ndarray]]]
"""In a process that decodes: what from, and the slots into which."""


def _adopt(dataset: ClipDataset, slots: Sequence[Mapping[str, np.ndarray]]) -> None:
    global _adopted
    _adopted = dataset, slots
    end_with_parent()
    # Ctrl-C reaches this process too; whoever trains ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _decode(slot: int, first: int, samples: Sequence[_Drawn]) -> Work:
    """Decode samples into places from ``first`` on; say what that took."""
    dataset, slots = _adopted

    def decode() -> int:
        for place, sample in enumerate(samples, first):
            dataset.decode(*sample, slots[slot], place)
        return len(samples)

    return measured(decode)


def prepare(
    batch: Mapping[str, Tensor],
    device: str | torch.device | None = None,
    *,
    heatmap_size: int = 56,
    sigma: float = 0.6,
) -> Batch:
    """Turn a batch into what the networks take, on ``device`` (default: where it is), in fresh memory.

    rgb becomes (B, 3, T, H, W) float32, normalised, and heatmaps (B, 17, T', h, w) float32 in 0..1, both laid
    out channels-last; label and index stay. Keypoints become heatmaps of ``heatmap_size`` pixels, which
    ``sigma`` is in too; where there is a crop, that part of them fills the heatmap. Samples with flip are
    mirrored, left and right keypoints change places.
    """
    moved = {name: value.to(device or value.device, non_blocking=True) for name, value in batch.items()}
    flip = moved.pop("flip").view(-1, 1, 1, 1, 1)
    if "rgb" in moved:
        rgb = moved["rgb"]
        moved["rgb"] = _normalise(torch.where(flip, rgb.flip(3), rgb)).permute(0, 4, 1, 2, 3)
    if "keypoints" in moved:
        keypoints = moved.pop("keypoints")
        if "crop" in moved:
            keypoints = _crop(keypoints, moved.pop("crop"))
        moved["heatmaps"] = _to_heatmaps(draw_heatmaps(keypoints, heatmap_size, sigma), flip)
    elif "heatmaps" in moved:
        moved["heatmaps"] = _to_heatmaps(moved["heatmaps"], flip).div_(255)
    return moved


@lru_cache(maxsize=32)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers on a device, (n,), taken there once.

    At such a copy in each step the host of a GPU would wait until all that is queued is done.
    """
    return torch.tensor(values, device=device)


def _crop(keypoints: Tensor, crop: Tensor) -> Tensor:
    """Move (B, T, M, K, 3) from the whole crop into parts of it, (B, 4): x, y, width, height."""
    corner, sides = crop[:, None, None, None, :2], crop[:, None, None, None, 2:]
    return torch.cat([(keypoints[..., :2].float() - corner) / sides, keypoints[..., 2:].float()], -1)


def _to_heatmaps(maps: Tensor, flip: Tensor) -> Tensor:
    """Mirror (B, T, K, h, w) where asked and lay it out as (B, K, T, h, w) float32."""
    mirrored = maps.index_select(2, constant(COCO_MIRRORED, maps.device)).flip(4)
    frames = torch.where(flip, mirrored, maps).flatten(0, 1)
    frames = frames.to(torch.float32, memory_format=torch.channels_last)
    return frames.unflatten(0, maps.shape[:2]).transpose(1, 2)


def _normalise(rgb: Tensor) -> Tensor:
    """Normalise (..., W, 3) uint8 by channel, whole rows at a time: loops over 3 values are slow on a CPU."""
    width = rgb.shape[-2]
    mean, std = (constant(values * width, rgb.device) for values in (_RGB_MEAN, _RGB_STD))
    return rgb.flatten(-2).float().sub_(mean).div_(std).unflatten(-1, (width, 3))

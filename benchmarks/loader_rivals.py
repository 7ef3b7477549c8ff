"""Other ways to read the same samples: 16 RGB and 48 heatmap rows of a random clip.

Each is as its documentation or its authors have it, in one thread where nothing else is said. The functions
prepare what they need and return the call to be timed.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
import zarr
from numcodecs import blosc
from torch.utils.data import DataLoader, Dataset

from harcache.benchmarks.footage import HEATMAP_SIZE, QUALITY, SIGMA, Filmed
from harcache.cache.jpeg import decode_jpeg, encode_jpeg
from harcache.cache.sampling import uniform_sample_train
from harcache.cache.streaming.dataset import ClipDataset

__all__ = [
    "Released",
    "frames_alone",
    "in_threads",
    "limit",
    "litdata_way",
    "released",
    "twice_at_once",
    "webdataset_way",
    "with_half_chroma",
    "without_detail",
    "zarr_python",
]

_CLIP_LEN, _EVERY = 48, 3
_RGB_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_RGB_STD = np.array([58.395, 57.12, 57.375], np.float32)

Call = Callable[[], object]


def limit(filmed: Sequence[Filmed], dataset: ClipDataset, samples: int, batch_size: int) -> Call:
    """Decode the bytes of the rows, which lie in memory, into an allocated batch: what no loader can beat.

    ``filmed`` without heatmaps: the frames alone.
    """
    drawn = [(filmed[n % len(filmed)], dataset.draw(n % len(dataset), 0)[0].tolist()) for n in range(samples)]
    batch = {name: value.numpy() for name, value in dataset.allocate(batch_size).items()}

    def call() -> None:
        for number, (clip, rows) in enumerate(drawn):
            place = number % batch_size
            for row, out in zip(rows[::_EVERY], batch["rgb"][place], strict=True):
                decode_jpeg(clip.jpegs[row], out)
            if clip.heatmaps:
                for row, out in zip(rows, batch["heatmaps"][place], strict=True):
                    blosc.decompress(clip.heatmaps[row], out)

    return call


def frames_alone(
    filmed: Sequence[Filmed], recode: Callable[[bytes], bytes] = lambda jpeg: jpeg
) -> list[Filmed]:
    """Return the clips without their heatmaps, each frame changed by ``recode``."""
    return [replace(clip, heatmaps=[], jpegs=[recode(jpeg) for jpeg in clip.jpegs]) for clip in filmed]


def with_half_chroma(jpeg: bytes) -> bytes:
    """Encode a frame again in 4:2:0, as most JPEG files are; the stores keep chroma whole."""
    return simplejpeg.encode_jpeg(simplejpeg.decode_jpeg(jpeg), quality=QUALITY, colorsubsampling="420")


def without_detail(jpeg: bytes) -> bytes:
    """Encode a frame of one colour instead: what is left to decode are its blocks, and next to no symbols."""
    return encode_jpeg(np.full_like(simplejpeg.decode_jpeg(jpeg), 128), QUALITY)


def twice_at_once(call: Call) -> Call:
    """Run ``call`` in two processes at once: what a second core of the machine can add at all."""
    loader = DataLoader(
        _Called(call),
        batch_size=None,
        num_workers=2,
        prefetch_factor=1,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    return lambda: list(loader)


class _Called(Dataset[None]):
    """Two items, each of which is a call."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __len__(self) -> int:
        return 2

    def __getitem__(self, _: int) -> None:
        self._call()


def in_threads(dataset: ClipDataset, threads: int, samples: int, batch_size: int) -> Call:
    """Read our stores in one process, into four batches in turn: the loader without its processes."""
    batches = [
        {name: value.numpy() for name, value in dataset.allocate(batch_size).items()} for _ in range(4)
    ]
    run: Any = map if threads == 1 else ThreadPoolExecutor(threads).map

    def read(number: int, frames: np.ndarray, flip: np.bool_) -> None:
        batch, place = divmod(number, batch_size)
        dataset.decode(number, frames, bool(flip), batches[batch % len(batches)], place)

    def call() -> None:
        numbers = np.arange(samples)
        list(run(read, numbers.tolist(), *dataset.draws(numbers, 0)))

    return call


class Released(Dataset[tuple[np.ndarray, np.ndarray]]):
    """The released training code's way, from its description: a video and NumPy by joint, each time anew.

    A sample of the ``count`` ones, whatever its number, is of a random clip: frames (3, 16, 224, 224) and
    heatmaps (17, 48, 56, 56), float32.
    """

    def __init__(self, filmed: Sequence[Filmed], count: int) -> None:
        self._filmed, self._count = filmed, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= number < self._count:
            raise IndexError(number)
        rng = np.random.default_rng(number)
        clip = self._filmed[int(rng.integers(len(self._filmed)))]
        rows = uniform_sample_train(len(clip.jpegs), _CLIP_LEN, rng)
        return _from_video(clip.video, rows[::_EVERY]), _joint_by_joint(clip.keypoints[rows])


def released(filmed: Sequence[Filmed], samples: int, batch_size: int) -> Call:
    """Read in the released way, float32 batches."""
    dataset = Released(filmed, samples)

    def call() -> None:
        for first in range(0, samples, batch_size):
            some = [dataset[number] for number in range(first, min(first + batch_size, samples))]
            for arrays in zip(*some, strict=True):
                torch.from_numpy(np.stack(arrays))

    return call


def _from_video(path: Path, frames: np.ndarray) -> np.ndarray:
    """(3, T, H, W) float32, normalised."""
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted, images = set(frames.tolist()), []
    for number in range(int(frames[-1]) + 1):
        video.grab()
        if number in wanted:
            images.append(cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB))
    video.release()
    return ((np.stack(images).astype(np.float32) - _RGB_MEAN) / _RGB_STD).transpose(3, 0, 1, 2)


def _joint_by_joint(keypoints: np.ndarray) -> np.ndarray:
    """(17, T, 56, 56) float32."""
    frames, _, joints, _ = keypoints.shape
    volume = np.zeros((joints, frames, HEATMAP_SIZE, HEATMAP_SIZE), np.float32)
    for frame, persons in enumerate(keypoints.astype(np.float32)):
        for person in persons:
            for joint, (x, y, score) in enumerate(person):
                _add_gaussian(volume[joint, frame], x * HEATMAP_SIZE, y * HEATMAP_SIZE, score)
    return volume


def _add_gaussian(heatmap: np.ndarray, x: float, y: float, score: float) -> None:
    (left, right), (top, bottom) = _window(x), _window(y)
    if score < 1e-4 or left >= right or top >= bottom:
        return
    across = np.arange(left, right, dtype=np.float32)
    down = np.arange(top, bottom, dtype=np.float32)[:, None]
    patch = np.exp(((across - x) ** 2 + (down - y) ** 2) / (-2 * SIGMA**2)) * score
    heatmap[top:bottom, left:right] = np.maximum(heatmap[top:bottom, left:right], patch)


def _window(mean: float) -> tuple[int, int]:
    """First pixel within three sigma, and the one after the last."""
    return max(int(mean - 3 * SIGMA), 0), min(int(mean + 3 * SIGMA) + 1, HEATMAP_SIZE)


def zarr_python(folder: Path, filmed: Sequence[Filmed], samples: int) -> Call:
    """zarr-python's own indexing of our stores."""
    rgb = zarr.open_array(store=folder / "rgb.zarr" / "frames", mode="r")
    volume = zarr.open_array(store=folder / "heatmaps.zarr" / "volume", mode="r")
    rng = np.random.default_rng(0)

    def call() -> None:
        for _ in range(samples):
            number = int(rng.integers(len(filmed)))
            frames = len(filmed[number].jpegs)
            rows = number * frames + uniform_sample_train(frames, _CLIP_LEN, rng)
            rgb.oindex[rows[::_EVERY]]
            volume.oindex[rows]

    return call


def litdata_way(filmed: Sequence[Filmed], folder: Path, samples: int, batch_size: int) -> Call:
    """LitData: whole clips as items, its dataset and loader, torch's default batches."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.cache import Cache

    folder.mkdir()
    writer = Cache(str(folder), chunk_bytes="64MB")
    for number, clip in enumerate(filmed):
        writer[number] = _blobs(clip)
    writer.done()
    writer.merge()
    dataset = StreamingDataset(str(folder), shuffle=True, transform=_Decoder())
    return _epochs(lambda: StreamingDataLoader(dataset, batch_size=batch_size), samples)


def webdataset_way(filmed: Sequence[Filmed], folder: Path, samples: int, batch_size: int) -> Call:
    """WebDataset: a tar file of whole clips, its shuffle buffer, torch's default batches."""
    import webdataset

    folder.mkdir()
    with webdataset.TarWriter(str(folder / "clips.tar")) as tar:
        for clip in filmed:
            rgb, heatmaps = _blobs(clip)
            tar.write({"__key__": clip.id, "rgb": rgb, "heatmaps": heatmaps})
    dataset = webdataset.WebDataset(str(folder / "clips.tar"), shardshuffle=False).shuffle(8)
    decoded = dataset.to_tuple("rgb", "heatmaps").map(_Decoder())
    return _epochs(lambda: DataLoader(decoded, batch_size), samples)


def _blobs(clip: Filmed) -> tuple[bytes, bytes]:
    return _pack(clip.jpegs), _pack(clip.heatmaps)


def _pack(chunks: Sequence[bytes]) -> bytes:
    """Return the chunks as one: their number, then where each ends, then all of them."""
    ends = np.cumsum([len(chunk) for chunk in chunks])
    return np.array([len(chunks), *ends], "<u4").tobytes() + b"".join(chunks)


def _unpack(blob: bytes) -> list[memoryview]:
    count = int.from_bytes(blob[:4], "little")
    ends = np.frombuffer(blob, "<u4", count, 4).tolist()
    content = memoryview(blob)[4 + 4 * count :]
    return [content[start:end] for start, end in itertools.pairwise([0, *ends])]


class _Decoder:
    """Decodes the rows of a random sample of a clip into arrays of its own."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def __call__(self, blobs: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        jpegs, maps = map(_unpack, blobs)
        rows = uniform_sample_train(len(jpegs), _CLIP_LEN, self._rng)
        rgb = np.empty((_CLIP_LEN // _EVERY, 224, 224, 3), np.uint8)
        heatmaps = np.empty((_CLIP_LEN, 17, HEATMAP_SIZE, HEATMAP_SIZE), np.uint8)
        for row, out in zip(rows[::_EVERY], rgb, strict=True):
            decode_jpeg(jpegs[row], out)
        for row, out in zip(rows, heatmaps, strict=True):
            blosc.decompress(maps[row], out)
        return rgb, heatmaps


def _epochs(loader: Callable[[], Iterable[Any]], samples: int) -> Call:
    """Take batches of one epoch after the other."""

    def batches() -> Iterator[Any]:
        while True:
            yield from loader()

    endless = batches()

    def call() -> None:
        taken = 0
        while taken < samples:
            taken += len(next(endless)[0])

    return call

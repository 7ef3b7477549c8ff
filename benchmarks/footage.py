"""Clips of a made-up walker, in our stores and as videos; the loaders' rivals store its very bytes.

The texture is chosen so that frames and heatmaps compress as real crops do: about 11 KB and 0.6 KB.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numcodecs import Blosc

from harcache.cache.array_spec import ArraySpec
from harcache.cache.clip_index import IndexEntry
from harcache.cache.jpeg import encode_jpeg
from harcache.cache.shard_writer import ShardWriter
from harcache.cache.store_paths import shard_path
from harcache.cache.store_writer import create_store, write_index
from harcache.cache.streaming.heatmaps import draw_heatmaps
from harcache.pipeline.video.writing import write_video

__all__ = ["HEATMAP_SIZE", "QUALITY", "SIGMA", "Filmed", "make_footage"]

HEATMAP_SIZE, SIGMA = 56, 0.6
_SIZE = 224
_FPS = 30
QUALITY = 95
# x and y of COCO's 17 joints in hundredths of the crop, from nose to ankles, and how far each one swings.
_FIGURE = [(50, 12), (52, 10), (48, 10), (55, 12), (45, 12), (60, 24), (40, 24), (65, 40), (35, 40)]
_FIGURE += [(67, 54), (33, 54), (56, 54), (44, 54), (57, 74), (43, 74), (58, 93), (42, 93)]
_SWING = [0, 0, 0, 0, 0, 1, -1, 5, -5, 9, -9, 1, -1, -5, 5, -10, 10]
_BONES = [(5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14)]
_BONES += [(14, 16), (0, 5), (0, 6)]


@dataclass(frozen=True)
class Filmed:
    """One clip: its video, keypoints (frames, 1, 17, 3) float16 as the store has them, and encoded rows."""

    id: str
    video: Path
    keypoints: np.ndarray
    jpegs: list[bytes]
    heatmaps: list[bytes]


def make_footage(folder: Path, clips: int, frames: int) -> list[Filmed]:
    """Film ``clips`` of ``frames`` frames each into ``folder``: videos, rgb.zarr and heatmaps.zarr."""
    arrays = {
        "rgb.zarr": [ArraySpec("frames", (_SIZE, _SIZE, 3), "uint8", "jpeg", QUALITY)],
        "heatmaps.zarr": [
            ArraySpec("volume", (17, HEATMAP_SIZE, HEATMAP_SIZE), "uint8", "blosc"),
            ArraySpec("keypoints", (1, 17, 3), "float16", "blosc"),
        ],
    }
    with ExitStack() as stack:
        writers = {}
        for store, specs in arrays.items():
            create_store(folder / store, specs, clips * frames, {})
            for spec in specs:
                path = shard_path(folder / store, spec, 0)
                writers[spec.name] = stack.enter_context(ShardWriter(path, spec, clips * frames))
        filmed = [_film(folder, number, frames, writers) for number in range(clips)]
    box, size = (0, 0, _SIZE, _SIZE), (_SIZE, _SIZE)
    for store in arrays:
        write_index(
            folder / store,
            [
                IndexEntry(clip.id, 0, number * frames, frames, range(frames), box, size)
                for number, clip in enumerate(filmed)
            ],
        )
    return filmed


def _film(folder: Path, number: int, frames: int, writers: Mapping[str, ShardWriter]) -> Filmed:
    rng = np.random.default_rng(number)
    keypoints = _walk(frames, rng)
    images = list(_pictures(keypoints, rng))
    drawn = draw_heatmaps(torch.from_numpy(keypoints), HEATMAP_SIZE, SIGMA)
    volume = (drawn * 255).round().to(torch.uint8).numpy()
    for name, rows in (("frames", images), ("volume", volume), ("keypoints", keypoints)):
        for row in rows:
            writers[name].append(row)
    video = folder / f"{number}.mp4"
    write_video(video, images, _FPS)
    encode = Blosc("lz4", clevel=5, shuffle=Blosc.NOSHUFFLE).encode
    jpegs = [encode_jpeg(image, QUALITY) for image in images]
    return Filmed(f"clip{number}", video, keypoints, jpegs, [encode(row) for row in volume])


def _walk(frames: int, rng: np.random.Generator) -> np.ndarray:
    """(frames, 1, 17, 3) float16: limbs that swing, and the certainty of each joint."""
    phase = np.sin(np.arange(frames) / 6 + rng.uniform(0, 6))[:, None]
    points = np.zeros((frames, 1, 17, 3), np.float32)
    points[:, 0, :, :2] = np.array(_FIGURE) / 100
    points[:, 0, :, 0] += phase * np.array(_SWING) / 100
    points[..., :2] += rng.normal(0, 0.003, (frames, 1, 17, 2))
    points[..., 2] = rng.uniform(0.7, 1, (frames, 1, 17))
    return points.astype(np.float16)


def _pictures(keypoints: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield (224, 224, 3) uint8 RGB: the figure before a textured wall, seen by a slowly turning camera."""
    wall = 110 + 20 * _noise(64, rng) + 4 * _noise(16, rng) + 1.5 * _noise(4, rng)
    clothes = 90 + 15 * _noise(32, rng) + 1.5 * _noise(4, rng)
    for number, points in enumerate((keypoints[:, 0, :, :2] * _SIZE).astype(int)):
        person = np.zeros((_SIZE, _SIZE), np.uint8)
        for one, other in _BONES:
            cv2.line(person, points[one].tolist(), points[other].tolist(), 1, 16)
        left = round(20 + 10 * np.sin(number / 15))
        seen = wall[left : left + _SIZE, left : left + _SIZE]
        image = np.where(person[..., None] > 0, clothes[:_SIZE, :_SIZE], seen)
        yield cv2.GaussianBlur(image, (5, 5), 0).clip(0, 255).astype(np.uint8)


def _noise(scale: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise (2 * 224, 2 * 224, 3) float32 of about ``scale`` pixels and deviation 1."""
    small = rng.normal(size=(2 * _SIZE // scale, 2 * _SIZE // scale, 3)).astype(np.float32)
    return cv2.resize(small, (2 * _SIZE, 2 * _SIZE), interpolation=cv2.INTER_CUBIC)

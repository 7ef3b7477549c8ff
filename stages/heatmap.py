"""Heatmap: the poses of a clip drawn in its crop, as ``heatmaps.zarr``.

The volume is what the pose stream reads; the keypoints beside it, in crop coordinates, are for training that
moves them before it draws.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.annotations import read_poses
from cache.clip_store import ArraySpec, ShardWriter
from cache.sampling import stored_frames
from pipeline.clips import Clip, fingerprint
from pipeline.engine import Engine, Report
from pipeline.outcomes import Counts
from pipeline.params import DatasetParams, HeatmapParams
from pipeline.plan import Unit
from stages.building import Timer, inputs_from, parts_of
from stages.stores import Cropped, StoreSpec, build_store, crops_of, write_shards
from stages.workspace import Workspace

__all__ = [
    "Context",
    "array_specs",
    "draw_heatmaps",
    "keypoint_rows",
    "points_in_crop",
    "process",
    "run",
    "volume_rows",
]

_JOINTS = 17
_LEAST_SCORE = 1e-4  # a joint under it is not drawn (released code)
_ROWS = 512  # drawn at a time: 512 float32 maps of 17x56x56 are 109 MB


@dataclass(frozen=True)
class Context:
    """What a unit needs beside its clips; the tokens stand for the state of the poses and the crops."""

    store: Path
    poses: Path
    poses_token: str
    crops: Path
    crops_token: str
    params: HeatmapParams
    max_frames: int | None
    persons: int


def run(params: DatasetParams, workspace: Workspace, engine: Engine) -> Counts:
    """Draw the heatmaps of every clip that has a crop."""
    cropped = Cropped.read(workspace, params.frames.max_frames)
    inputs = inputs_from(workspace.poses, cropped.clips)
    persons = params.pose.max_persons
    parameters = store_parameters(params)
    wanted = cropped.wanted(fingerprint("heatmap", parameters), lambda clip: inputs.fingerprints[clip.id])
    arrays = array_specs(params.heatmap, persons)
    store = StoreSpec("heatmap", workspace.heatmaps, arrays, params.heatmap.shard_rows, parameters)
    context = Context(
        workspace.heatmaps,
        workspace.poses,
        inputs.token,
        workspace.crops,
        cropped.token,
        params.heatmap,
        params.frames.max_frames,
        persons,
    )
    return build_store(store, cropped, wanted, process, context, engine, workspace)


def store_parameters(params: DatasetParams) -> dict[str, Any]:
    """Return the parameters that the store's content depends on, which are kept in it."""
    return asdict(params.heatmap) | asdict(params.frames) | {"persons": params.pose.max_persons}


def array_specs(params: HeatmapParams, persons: int) -> tuple[ArraySpec, ArraySpec]:
    """Return the store's arrays: ``volume`` (17, S, S) uint8, ``keypoints`` (persons, 17, 3) float16."""
    return (
        ArraySpec("volume", (_JOINTS, params.size, params.size), "uint8", "blosc"),
        ArraySpec("keypoints", (persons, _JOINTS, 3), "float16", "blosc"),
    )


def process(unit: Unit, context: Context) -> Report:
    """Make one part: the heatmaps and keypoints of its clips."""
    timer = Timer()
    specs = array_specs(context.params, context.persons)
    return write_shards(
        unit,
        context.store,
        specs,
        context.params.shard_rows,
        timer,
        lambda clip, writers: _write_clip(clip, context, writers[0], writers[1], timer),
    )


def draw_heatmaps(keypoints: np.ndarray, scores: np.ndarray, size: int, sigma: float) -> np.ndarray:
    """Draw a Gaussian at every joint, as high as its score; persons are merged by the maximum.

    ``keypoints``: (M, T, K, 2), x before y, pixels of the heatmap; ``scores``: (M, T, K), 0..1. Returns
    (T, K, size, size) float32, rows before columns. Joints that are NaN or score under 1e-4 are left out, and
    a Gaussian ends at 3 sigma. Source: EPAM-Net, section 3, and its released code.
    """
    persons, frames, joints = scores.shape
    volume = np.zeros((frames, joints, size, size), np.float32)
    for person in range(persons):
        drawn = np.isfinite(keypoints[person]).all(-1) & (scores[person] >= _LEAST_SCORE)
        center = np.where(drawn[..., None], keypoints[person], 0.0)
        peak = np.where(drawn, scores[person], 0.0)
        across, down = (_bell(center[..., axis], size, sigma) for axis in (0, 1))
        one = (down * peak[..., None])[..., :, None] * across[..., None, :]
        np.maximum(volume, one, out=volume)
    return volume


def _bell(mean: np.ndarray, size: int, sigma: float) -> np.ndarray:
    """Gaussians (..., size) of peak 1 around ``mean`` (...), cut off where the released code cuts them."""
    pixel = np.arange(size)
    first = np.trunc(mean - 3 * sigma)[..., None]
    last = np.trunc(mean + 3 * sigma)[..., None]
    values = np.exp(-((pixel - mean[..., None]) ** 2) / (2 * sigma**2))
    return np.where((pixel >= first) & (pixel <= last), values, 0.0).astype(np.float32)


def _write_clip(
    clip: Clip, context: Context, volume: ShardWriter, keypoints: ShardWriter, timer: Timer
) -> int:
    with timer("read"):
        points, scores = read_poses(parts_of(context.poses, context.poses_token)[clip.id], clip.id)
    rows = stored_frames(clip.frames, context.max_frames)
    in_crop = points_in_crop(points[:, rows], crops_of(context.crops, context.crops_token)[clip.id].box)
    for first in range(0, len(rows), _ROWS):
        part = slice(first, first + _ROWS)
        with timer("draw"):
            maps = volume_rows(in_crop[:, part], scores[:, rows[part]], context.params)
        with timer("write"):
            for one in maps:
                volume.append(one)
    with timer("write"):
        for one in keypoint_rows(in_crop, scores[:, rows], context.persons):
            keypoints.append(one)
    return len(rows)


def volume_rows(in_crop: np.ndarray, scores: np.ndarray, params: HeatmapParams) -> np.ndarray:
    """Return what the store holds as ``volume``: (T, 17, S, S) uint8, 255 for a certain joint.

    ``in_crop``: (M, T, 17, 2) in the crop, 0..1, as `points_in_crop` gives them; ``scores``: (M, T, 17).
    """
    drawn = draw_heatmaps(in_crop * params.size, scores, params.size, params.sigma)
    return np.round(drawn * 255).clip(0, 255).astype(np.uint8)


def points_in_crop(points: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Move (..., 2) pixels of the frame into the crop ``box`` (x1 y1 x2 y2), 0..1."""
    x1, y1, x2, y2 = box
    return (points - np.array([x1, y1])) / np.array([x2 - x1, y2 - y1])


def keypoint_rows(in_crop: np.ndarray, scores: np.ndarray, persons: int) -> np.ndarray:
    """Return what the store holds as ``keypoints``, of the arguments of `volume_rows`.

    (T, persons, K, 3) float16: x, y, score; NaN and 0 for a person who is not there.
    """
    found, frames, joints = scores.shape
    rows = np.full((frames, persons, joints, 3), np.nan, np.float16)
    rows[..., 2] = 0
    rows[:, :found, :, :2] = in_crop.swapaxes(0, 1)
    rows[:, :found, :, 2] = scores.swapaxes(0, 1)
    return rows

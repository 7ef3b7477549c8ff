"""Heatmap: the poses of a clip drawn in its crop, as ``heatmaps.zarr``.

The volume is what the pose stream reads; the keypoints beside it, in crop coordinates, are for training that
moves them before it draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harcache.cache.annotations import read_joints, read_poses, read_positions
from harcache.cache.array_spec import ArraySpec
from harcache.cache.sampling import stored_frames
from harcache.cache.shard_writer import ShardWriter
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.clips import Clip
from harcache.pipeline.params import DatasetParams, HeatmapParams
from harcache.pipeline.skeletons.joints import COCO_MIRRORED
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.outcomes import Counts
from harcache.pipeline.work.plan import Unit
from harcache.stages.shared.rates import Timer
from harcache.stages.shared.store_parts import (
    Cropped,
    StoreSpec,
    build_store,
    crops_of,
    store_parameters,
    write_shards,
)
from harcache.stages.shared.units import Inputs, inputs_from, parts_of
from harcache.stages.shared.workspace import Workspace

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
    arrays: tuple[ArraySpec, ...]


def run(params: DatasetParams, workspace: Workspace, engine: Engine) -> Counts:
    """Draw the heatmaps of every clip that has a crop."""
    cropped = Cropped.read(workspace, params.frames.max_frames)
    inputs = inputs_from(workspace.poses, cropped.clips)
    parameters = store_parameters("heatmap", params)
    wanted = cropped.wanted(fingerprint("heatmap", parameters), lambda clip: inputs.fingerprints[clip.id])
    arrays = array_specs(params.heatmap, params.pose.max_persons, *_joints(workspace.poses, inputs))
    store = StoreSpec("heatmap", workspace.heatmaps, arrays, params.heatmap.shard_rows, parameters)
    context = Context(
        workspace.heatmaps,
        workspace.poses,
        inputs.token,
        workspace.crops,
        cropped.token,
        params.heatmap,
        params.frames.max_frames,
        arrays,
    )
    return build_store(store, cropped, wanted, process, context, engine, workspace)


def array_specs(
    params: HeatmapParams, persons: int, joints: int = len(COCO_MIRRORED), in_space: bool = False
) -> tuple[ArraySpec, ...]:
    """Return the store's arrays: ``volume`` (V, S, S) uint8, ``keypoints`` (persons, V, 3) float16.

    V are ``joints``. Skeletons ``in_space`` have ``positions`` (persons, V, 3) float32 too, in metres.
    """
    specs = (
        ArraySpec("volume", (joints, params.size, params.size), "uint8", "blosc"),
        ArraySpec("keypoints", (persons, joints, 3), "float16", "blosc"),
    )
    return (*specs, ArraySpec("positions", (persons, joints, 3), "float32", "blosc")) if in_space else specs


def process(unit: Unit, context: Context) -> Report:
    """Make one part: the heatmaps and keypoints of its clips."""
    timer = Timer()
    return write_shards(
        unit,
        context.store,
        context.arrays,
        context.params.shard_rows,
        timer,
        lambda clip, writers: _write_clip(clip, context, writers, timer),
    )


def _joints(poses: Path, inputs: Inputs) -> tuple[int, bool]:
    """Return the joints of the dataset's poses, and whether they have positions; one part tells for all."""
    if not inputs.fingerprints:
        return len(COCO_MIRRORED), False
    first = next(iter(inputs.fingerprints))
    return read_joints(parts_of(poses, inputs.token)[first], first)


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


def _write_clip(clip: Clip, context: Context, writers: Sequence[ShardWriter], timer: Timer) -> int:
    volume, keypoints, *in_space = writers
    part = parts_of(context.poses, context.poses_token)[clip.id]
    with timer("read"):
        points, scores = read_poses(part, clip.id)
        positions = read_positions(part, clip.id)
    rows = stored_frames(clip.frames, context.max_frames)
    in_crop = points_in_crop(points[:, rows], crops_of(context.crops, context.crops_token)[clip.id].box)
    for first in range(0, len(rows), _ROWS):
        some = slice(first, first + _ROWS)
        with timer("draw"):
            maps = volume_rows(in_crop[:, some], scores[:, rows[some]], context.params)
        with timer("write"):
            for one in maps:
                volume.append(one)
    with timer("write"):
        persons = context.arrays[1].shape_of_row[0]
        for one in keypoint_rows(in_crop, scores[:, rows], persons):
            keypoints.append(one)
        if positions is not None:
            for one in _padded(positions[:, rows], persons):
                in_space[0].append(one)
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
    points = _padded(in_crop, persons)
    return np.concatenate([points, np.nan_to_num(_padded(scores, persons))[..., None]], -1, dtype=np.float16)


def _padded(values: np.ndarray, persons: int) -> np.ndarray:
    """(M, T, ...) as (T, persons, ...), NaN for a person who is not there."""
    rows = np.full((values.shape[1], persons, *values.shape[2:]), np.nan, values.dtype)
    rows[:, : len(values)] = values.swapaxes(0, 1)
    return rows

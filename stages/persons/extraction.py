"""What detect and pose share: read the clips of a unit ahead of one network, and write what it found.

Frames are decoded once for each of the two stages: keeping them between would cost a hundred times the disk.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from harcache.models.pretrained.batching import Usage, extract
from harcache.models.pretrained.network import Network
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip
from harcache.pipeline.params import DetectParams, PoseParams
from harcache.pipeline.video.frames import clip_frames
from harcache.pipeline.work.engine import Report
from harcache.pipeline.work.plan import Unit
from harcache.stages.shared.rates import AHEAD, Timer
from harcache.stages.shared.units import Rules, build_table_part
from harcache.stages.shared.workspace import choose_device

__all__ = ["Context", "extract_part", "extract_video"]

_MOST_THREADS = 16  # a decoder of 1920x1080 keeps some 50 MB of frames
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Context:
    """What a unit needs beside its clips.

    ``network`` stands for the parameters and the content of the network's files, ``token`` for the state of
    the detections, if needed.
    """

    folder: Path
    videos: Path
    params: DetectParams | PoseParams
    weights_dir: Path | None
    device: str
    network: str
    detections: Path = Path()
    token: str = ""


def extract_part(
    unit: Unit,
    context: Context,
    wanted: Callable[[Clip], Sequence[np.ndarray | None]],
    assemble: Callable[[Clip, list[np.ndarray]], _Result],
    write: Callable[[Path, Mapping[str, _Result]], None],
    rules: Rules | None = None,
) -> Report:
    """Make one part with the network that the parameters name.

    ``wanted``: for every frame of a clip the boxes to look at, (n, 5), or None where the network is not to
    look; called from threads. ``assemble`` makes the clip's entry of what was found in each frame where it
    was. Both may fail the clip by a HarcacheError.
    """
    timer = Timer()
    given_up = dict(unit.given_up)
    network = _network(context.network, context.params, context.weights_dir, context.device)
    sources = {
        clip.id: _frames(clip, context.videos, wanted) for clip in unit.clips if clip.id not in given_up
    }
    found = _timed(network, sources, timer)

    def entry(clip: Clip) -> _Result:
        return assemble(clip, _whole(found.pop(clip.id)))

    return build_table_part(context.folder, unit, entry, write, timer, rules)


def extract_video(
    network: Network, frames: Iterable[tuple[np.ndarray, np.ndarray]], timer: Timer
) -> list[np.ndarray]:
    """Return what a network finds in each of the (H, W, 3) uint8 RGB frames, which come with their boxes."""
    return _whole(_timed(network, {"": frames}, timer)[""])


def _timed(
    network: Network, sources: Mapping[str, Iterable[tuple[np.ndarray, np.ndarray]]], timer: Timer
) -> dict[str, list[list[np.ndarray]] | HarcacheError]:
    usage = Usage()
    found = extract(network, sources, _threads(), usage)
    timer.seconds["network"] += usage.network
    timer.seconds["wait"] += usage.wait
    timer.seconds[f"decode{AHEAD}"] += usage.decode
    timer.seconds[f"prepare{AHEAD}"] += usage.prepare
    return found


def _whole(found: list[list[np.ndarray]] | HarcacheError) -> list[np.ndarray]:
    if isinstance(found, HarcacheError):
        raise found
    return [np.concatenate(frame) for frame in found]


def _frames(
    clip: Clip, videos: Path, wanted: Callable[[Clip], Sequence[np.ndarray | None]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    boxes = wanted(clip)
    if all(box is None for box in boxes):
        return
    for frame, box in zip(clip_frames(videos, clip), boxes, strict=True):
        if box is not None:
            yield frame, box


def _threads() -> int:
    # The engine shares the cores out among its workers by this variable.
    given = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(given) if given.isdigit() and int(given) else len(os.sched_getaffinity(0))
    return min(cores, _MOST_THREADS)


@lru_cache(maxsize=1)
def _network(
    content: str, params: DetectParams | PoseParams, weights_dir: Path | None, device: str
) -> Network:
    # One network a process, which may outlive the command: loading it costs more than a unit's work.
    if isinstance(params, DetectParams):
        from harcache.models.detectors.registry import load_detector

        return load_detector(params, weights_dir, choose_device(device))
    from harcache.models.estimators.registry import load_pose_estimator

    return load_pose_estimator(params, weights_dir, choose_device(device))

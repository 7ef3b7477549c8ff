"""The stages' own functions on one video, without their files: the persons and poses of each span of frames.

The video is decoded twice for it, and once more for `read_samples`, as the stages do, so that no frame is
kept: memory grows with boxes and keypoints alone, about 50 MB an hour for two persons.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harcache.models.detectors.registry import load_detector
from harcache.models.estimators.registry import load_pose_estimator
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.progress import Progress
from harcache.pipeline.params import DatasetParams, DetectParams, PoseParams
from harcache.pipeline.video.frames import Probe, read_frames
from harcache.stages.crop import crop_of
from harcache.stages.detect import find_persons
from harcache.stages.persons.tracking import link_persons
from harcache.stages.pose import estimate_poses, linked_poses
from harcache.stages.shared.rates import Timer

__all__ = ["PoseFinder", "SpanPoses", "counted"]


@dataclass(frozen=True)
class SpanPoses:
    """What was found in the frames ``start`` to ``end - 1`` of a video.

    ``boxes`` are (M, T, 4) x1 y1 x2 y2, ``keypoints`` (M, T, 17, 2), pixels of the frame, NaN where a person
    is not seen; ``scores`` (M, T, 17). ``crop`` and ``source`` are those of `stages.shared.crop_table.Crop`.
    """

    start: int
    end: int
    boxes: np.ndarray
    keypoints: np.ndarray
    scores: np.ndarray
    crop: tuple[int, int, int, int]
    source: str


class PoseFinder:
    """Detector and pose estimator, loaded once for any number of videos."""

    def __init__(self, params: DatasetParams, weights_dir: Path | None, device: str) -> None:
        detect, pose = params.detect, params.pose
        if not isinstance(detect, DetectParams) or not isinstance(pose, PoseParams):
            raise HarcacheError(
                f"the poses of {params.name} were not estimated from its videos, so none can be of others; "
                "give --dataset, one of params.yaml that names a detector and a pose estimator"
            )
        self._params = params
        self._detector = load_detector(detect, weights_dir, device)
        self._estimator = load_pose_estimator(pose, weights_dir, device)

    def find(
        self, path: Path, probe: Probe, spans: Sequence[tuple[int, int]], bar: Progress
    ) -> list[SpanPoses]:
        """Find the persons and poses of each span of frames; one in many spans is read once.

        Raises HarcacheError for a video that can't be read to its end.
        """
        params, timer = self._params, Timer()
        frames = counted(read_frames(path, 0, probe.frames), bar)
        boxes = find_persons(frames, self._detector, timer)
        links = [link_persons(boxes[start:end], params.pose.max_persons) for start, end in spans]
        rows = _rows(len(boxes), spans, links)
        frames = counted(read_frames(path, 0, probe.frames), bar)
        poses = estimate_poses(frames, boxes, rows, self._estimator, timer)
        found = []
        for (start, end), linked in zip(spans, links, strict=True):
            keypoints, scores = linked_poses(linked, poses[start:end])
            crop, source = crop_of(keypoints, scores, (probe.height, probe.width), params.crop)
            tracks = _tracks(linked, boxes[start:end])
            found.append(SpanPoses(start, end, tracks, keypoints, scores, crop, source))
        return found


def counted(frames: Iterator[np.ndarray], bar: Progress) -> Iterator[np.ndarray]:
    """Pass frames on and show each as done."""
    for frame in frames:
        yield frame
        bar.advance()


def _rows(frames: int, spans: Sequence[tuple[int, int]], links: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return which boxes of each frame belong to a person of any span, each once."""
    wanted: list[dict[int, None]] = [{} for _ in range(frames)]
    for (start, _), linked in zip(spans, links, strict=True):
        for t, m in np.argwhere(linked.T >= 0):
            wanted[start + t][int(linked[m, t])] = None
    return [np.array(list(rows), np.int64) for rows in wanted]


def _tracks(links: np.ndarray, boxes: Sequence[np.ndarray]) -> np.ndarray:
    tracks = np.full((*links.shape, 4), np.nan, np.float32)
    for m, t in np.argwhere(links >= 0):
        tracks[m, t] = boxes[t][links[m, t], :4]
    return tracks

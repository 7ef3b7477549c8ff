"""The stages' own functions on one video, without their files: what a network would read from the caches.

The video is decoded three times (persons, poses, crops), as the stages do, so that no frame is kept: memory
grows with boxes and keypoints alone, about 50 MB an hour for two persons.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harcache.cache.codecs import decode_jpeg, encode_jpeg
from harcache.cache.sampling import rgb_positions, stored_frames
from harcache.cache.streaming.dataset import Batch, RowReader
from harcache.models.detectors.registry import load_detector
from harcache.models.estimators.registry import load_pose_estimator
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.progress import Progress
from harcache.pipeline.params import DatasetParams, DetectParams, PoseParams, RgbParams
from harcache.pipeline.video.frames import Probe, read_frames
from harcache.stages.crop import crop_of
from harcache.stages.detect import find_persons
from harcache.stages.heatmap import keypoint_rows, points_in_crop, volume_rows
from harcache.stages.persons.tracking import link_persons
from harcache.stages.pose import estimate_poses, linked_poses
from harcache.stages.rgb import crop_frame
from harcache.stages.shared.units import Timer
from harcache.stages.training.inputs import Feed

__all__ = ["Chain", "Sampled", "Seen", "counted", "read_samples"]


@dataclass(frozen=True)
class Seen:
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


@dataclass(frozen=True)
class Sampled:
    """A span's samples, one a view, and the frames of the video that the RGB frames of the first one are."""

    seen: Seen
    samples: list[Batch]
    frames: list[int]


class Chain:
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

    def look(self, path: Path, probe: Probe, spans: Sequence[tuple[int, int]], bar: Progress) -> list[Seen]:
        """Find the persons and poses of each span of frames; a frame in many spans is looked at once.

        Raises HarcacheError for a video that can't be read to its end.
        """
        params, timer = self._params, Timer()
        frames = counted(read_frames(path, 0, probe.frames), bar)
        boxes = find_persons(frames, self._detector, timer)
        links = [link_persons(boxes[start:end], params.pose.max_persons) for start, end in spans]
        rows = _rows(len(boxes), spans, links)
        frames = counted(read_frames(path, 0, probe.frames), bar)
        poses = estimate_poses(frames, boxes, rows, self._estimator, timer)
        seen = []
        for (start, end), linked in zip(spans, links, strict=True):
            keypoints, scores = linked_poses(linked, poses[start:end])
            crop, source = crop_of(keypoints, scores, (probe.height, probe.width), params.crop)
            tracks = _tracks(linked, boxes[start:end])
            seen.append(Seen(start, end, tracks, keypoints, scores, crop, source))
        return seen


def counted(frames: Iterator[np.ndarray], bar: Progress) -> Iterator[np.ndarray]:
    """Pass frames on and show each as done."""
    for frame in frames:
        yield frame
        bar.advance()


def read_samples(
    path: Path,
    frames: int,
    seen: Sequence[Seen],
    feed: Feed,
    params: DatasetParams,
    bar: Progress,
) -> Iterator[Sampled]:
    """Give each span, in the order of their ends, with its samples as `ClipDataset` gives them.

    The crops go through the codec of the store, so that prediction sees the pixels that training saw.
    """
    samplers = [_Sampler(one, feed, params) for one in sorted(seen, key=lambda s: s.end)]
    wanted: dict[int, list[_Sampler]] = defaultdict(list)
    for sampler in samplers:
        for number in sampler.wanted:
            wanted[number].append(sampler)
    decoded = enumerate(counted(read_frames(path, 0, frames), bar)) if wanted else iter(())
    for number, frame in decoded:
        for sampler in wanted.pop(number, ()):
            sampler.take(number, frame)
        while samplers and samplers[0].last <= number:
            yield _finished(samplers.pop(0))
    for sampler in samplers:
        yield _finished(sampler)


def _finished(sampler: "_Sampler") -> Sampled:
    frames = [sampler.frame_of(row) for row in sampler.rgb_rows(0)]
    return Sampled(sampler.seen, [sampler.samples[view] for view in range(len(sampler.samples))], frames)


class _Sampler:
    """One span of a video as a clip of stores in memory, of which only sampled frames are ever held."""

    def __init__(self, seen: Seen, feed: Feed, params: DatasetParams) -> None:
        self.seen = seen
        self._rgb, self._crops = params.rgb, dict[int, np.ndarray]()
        self._rows = stored_frames(seen.end - seen.start, params.frames.max_frames)
        self._positions = rgb_positions(feed.clip_len, feed.rgb_frames)
        poses = _Poses(seen, self._rows, params)
        size = params.rgb.size
        crops = _Rows((size, size, 3), np.dtype(np.uint8), self._read_crops)
        self.samples = feed.dataset(
            [("", 0)],
            _OneClip(len(self._rows), {"frames": crops}),
            _OneClip(len(self._rows), poses.readers()),
        )
        self.wanted: dict[int, int] = {}  # frame of the video: row of the clip
        if feed.rgb:
            drawn = np.unique([self.rgb_rows(view) for view in range(feed.views)]).tolist()
            self.wanted = {self.frame_of(row): row for row in drawn}

    def rgb_rows(self, view: int) -> list[int]:
        """Return the clip's rows that the RGB frames of a sample are."""
        frames, _ = self.samples.draw(view, 0)
        return frames[self._positions].tolist()

    def frame_of(self, row: int) -> int:
        """Return the frame of the video that a row of the clip is."""
        return self.seen.start + int(self._rows[row])

    @property
    def last(self) -> int:
        """The last frame of the video that a sample needs, -1 where none does."""
        return max(self.wanted, default=-1)

    def take(self, number: int, frame: np.ndarray) -> None:
        """Keep the crop of frame ``number`` of the video, one of those wanted."""
        crop = crop_frame(frame, self.seen.crop, self._rgb.size)
        self._crops[self.wanted[number]] = _through_codec(crop, self._rgb)

    def _read_crops(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self._crops[row] for row in rows.tolist()])


@dataclass(frozen=True)
class _Poses:
    """The rows that heatmaps.zarr would hold of a span."""

    seen: Seen
    rows: np.ndarray
    params: DatasetParams

    def readers(self) -> "dict[str, _Rows]":
        size, persons = self.params.heatmap.size, self.params.pose.max_persons
        return {
            "volume": _Rows((17, size, size), np.dtype(np.uint8), self._volume),
            "keypoints": _Rows((persons, 17, 3), np.dtype(np.float16), self._keypoints),
        }

    def _at(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        frames = self.rows[rows]
        return points_in_crop(self.seen.keypoints[:, frames], self.seen.crop), self.seen.scores[:, frames]

    def _volume(self, rows: np.ndarray) -> np.ndarray:
        return volume_rows(*self._at(rows), self.params.heatmap)

    def _keypoints(self, rows: np.ndarray) -> np.ndarray:
        return keypoint_rows(*self._at(rows), self.params.pose.max_persons)


@dataclass
class _Rows:
    """A `cache.streaming.dataset.RowReader` of rows that ``make`` gives: (n,) int64 to (n, *row_shape)."""

    row_shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[np.ndarray], np.ndarray]

    def read_rows(self, rows: np.ndarray, out: np.ndarray) -> None:
        out[:] = self.make(rows)


@dataclass(frozen=True)
class _OneClip:
    """A `cache.streaming.dataset.Store` of one clip."""

    length: int
    readers: Mapping[str, RowReader]

    def rows(self, id: str, /) -> slice:
        return slice(0, self.length)

    def reader(self, name: str, /) -> RowReader:
        return self.readers[name]


def _through_codec(crop: np.ndarray, params: RgbParams) -> np.ndarray:
    if params.codec == "jpeg":
        decode_jpeg(encode_jpeg(crop, params.quality), crop)
    return crop


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

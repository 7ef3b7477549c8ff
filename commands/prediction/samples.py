"""What a network would read of a video from caches: `ClipDataset` on stores of its spans in memory."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harcache.cache.jpeg import decode_jpeg, encode_jpeg
from harcache.cache.sampling import rgb_positions, stored_frames
from harcache.cache.streaming.dataset import Batch, RowReader
from harcache.commands.prediction.poses import SpanPoses, counted
from harcache.pipeline.base.progress import Progress
from harcache.pipeline.params import DatasetParams, RgbParams
from harcache.pipeline.video.frames import read_frames
from harcache.stages.heatmap import keypoint_rows, points_in_crop, volume_rows
from harcache.stages.rgb import crop_frame
from harcache.stages.training.inputs import NetworkInputs

__all__ = ["SampledSpan", "read_samples"]


@dataclass(frozen=True)
class SampledSpan:
    """A span's samples, one a view, and the frames of the video that the RGB frames of the first one are."""

    span: SpanPoses
    samples: list[Batch]
    frames: list[int]


def read_samples(
    path: Path,
    frames: int,
    spans: Sequence[SpanPoses],
    inputs: NetworkInputs,
    params: DatasetParams,
    bar: Progress,
) -> Iterator[SampledSpan]:
    """Give each span, in the order of their ends, with its samples as `ClipDataset` gives them.

    The crops go through the codec of the store, so that prediction sees the pixels that training saw.
    """
    samplers = [_Sampler(one, inputs, params) for one in sorted(spans, key=lambda span: span.end)]
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


def _finished(sampler: "_Sampler") -> SampledSpan:
    frames = [sampler.frame_of(row) for row in sampler.rgb_rows(0)]
    return SampledSpan(sampler.span, [sampler.samples[view] for view in range(len(sampler.samples))], frames)


class _Sampler:
    """One span of a video as a clip of stores in memory, of which only sampled frames are ever held."""

    def __init__(self, span: SpanPoses, inputs: NetworkInputs, params: DatasetParams) -> None:
        self.span = span
        self._rgb, self._crops = params.rgb, dict[int, np.ndarray]()
        self._rows = stored_frames(span.end - span.start, params.frames.max_frames)
        self._positions = rgb_positions(inputs.clip_len, inputs.rgb_frames)
        poses = _Poses(span, self._rows, params)
        size = params.rgb.size
        crops = _Rows((size, size, 3), np.dtype(np.uint8), self._read_crops)
        self.samples = inputs.dataset(
            [("", 0)],
            _OneClip(len(self._rows), {"frames": crops}),
            _OneClip(len(self._rows), poses.readers()),
        )
        self.wanted: dict[int, int] = {}  # frame of the video: row of the clip
        if inputs.rgb:
            drawn = np.unique([self.rgb_rows(view) for view in range(inputs.views)]).tolist()
            self.wanted = {self.frame_of(row): row for row in drawn}

    def rgb_rows(self, view: int) -> list[int]:
        """Return the clip's rows that the RGB frames of a sample are."""
        frames, _ = self.samples.draw(view, 0)
        return frames[self._positions].tolist()

    def frame_of(self, row: int) -> int:
        """Return the frame of the video that a row of the clip is."""
        return self.span.start + int(self._rows[row])

    @property
    def last(self) -> int:
        """The last frame of the video that a sample needs, -1 where none does."""
        return max(self.wanted, default=-1)

    def take(self, number: int, frame: np.ndarray) -> None:
        """Keep the crop of frame ``number`` of the video, one of those wanted."""
        crop = crop_frame(frame, self.span.crop, self._rgb.size)
        self._crops[self.wanted[number]] = _through_codec(crop, self._rgb)

    def _read_crops(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self._crops[row] for row in rows.tolist()])


@dataclass(frozen=True)
class _Poses:
    """The rows that heatmaps.zarr would hold of a span."""

    span: SpanPoses
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
        return points_in_crop(self.span.keypoints[:, frames], self.span.crop), self.span.scores[:, frames]

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

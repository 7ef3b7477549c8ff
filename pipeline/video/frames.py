"""Frames of a video in order, and what a file holds without believing what its header says.

A clip late in a long video is reached by its key frame where the file's times prove which frame that is; any
doubt costs decoding from the first frame, never a frame of the wrong number.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.stream import Disposition
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import digest_of
from harcache.pipeline.clips import Clip

__all__ = ["Probe", "VideoError", "clip_frames", "probe", "read_frames"]

_ADVICE = "copy the file again from its source or remove it"
# Containers round their duration and may not state how long the last frame lasts.
_DURATION_SLACK = 0.5  # seconds
# Files of video alone: text that names other files (playlists, scripts) or the network opens none of them.
_FORMATS = "mov,avi,matroska,mpeg,mpegvideo,mpegts,asf,flv,ogg,m4v,h264,hevc,mxf,nut,dv"
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
_PYAV = int(av.__version__.partition(".")[0])
# Titles may be in any encoding. PyAV 19 reads them all; before, it had to be told to.
_TEXT: dict[str, Any] = {"metadata_errors": "replace"} if _PYAV < 19 else {}
# Decoding fewer frames costs less than reading the times of all.
_WORTH_SEEKING = 250
_TRIED = 32  # frames that must come as the packets list them before a file is trusted
_MOST_REORDERED = 32  # frames; no codec shows a frame further from where it is stored
# A key packet of theirs starts decoding anew, and every packet shows one frame.
_SEEKABLE_CODECS = {"h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "vp9"}
_EMPTY_PACKET = 19  # bytes; MPEG-4's way to show no frame is at most so large
# AVI keeps no times of showing; FFmpeg guesses them wrong for codecs that reorder frames freely.
_FREELY_REORDERED = {"h264", "hevc"}
_NO_TIME = -(1 << 63)
_PACKET = np.dtype([("time", np.int64), ("size", np.int64), ("key", bool), ("hidden", bool)])


class VideoError(HarcacheError):
    """A video that can't be read, or not as far as it should be."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What one file holds: counted frames, pixels of a shown frame, bytes, and a digest of the whole file."""

    frames: int
    height: int
    width: int
    fps: float
    size: int
    mtime_ns: int
    digest: str


@dataclass(frozen=True, slots=True)
class _Times:
    """When the frames are shown and the key packets among them, ascending, in the stream's time base."""

    shown: np.ndarray
    keys: np.ndarray
    size: tuple[int, int]  # height and width of the first frame


@dataclass(frozen=True, slots=True)
class _Packets:
    count: int
    shown: int
    damaged: bool
    end: float  # seconds
    smallest: int  # bytes


def probe(path: Path) -> Probe:
    """Count the frames of a video and measure it; decodes one frame where the container lists its packets.

    The digest is BLAKE2b with 128 bits, in hexadecimal digits. Containers without such a list (Matroska,
    MPEG, WMV) are decoded whole, since a packet of theirs may hold no frame to show; so is MPEG-4 with
    packets so small that they may be such, as Xvid writes them where nothing moves.

    Raises VideoError for a file that is missing, empty, not a video, without a video stream, or cut short.
    """
    # The digest reads the file first, so that demuxing finds it in the page cache: one read from the disk.
    stat, digest = _stat_and_digest(path)
    if stat.st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes): {_ADVICE}")
    with _opened(path) as (container, stream):
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        packets = _count_packets(container, stream)
        indexed = _listed_packets(stream)
        _check_whole(path, packets, indexed, _stated_seconds(container, stream))
        may_be_empty = stream.codec_context.name == "mpeg4" and packets.smallest <= _EMPTY_PACKET
    listed = packets.count == indexed and not may_be_empty
    frames = packets.shown if listed else _count_decoded(path)
    height, width = _first_frame_size(path)
    return Probe(frames, height, width, fps, stat.st_size, stat.st_mtime_ns, digest)


def clip_frames(videos: Path, clip: Clip) -> Iterator[np.ndarray]:
    """Yield the frames of a clip, as `read_frames` does, of a video in the folder ``videos``.

    Raises VideoError too where the file has another size than the index found: its frames would be kept as
    those of the video that was there before.
    """
    path = videos / clip.video
    yield from read_frames(path, clip.start, clip.end)
    # Last, since a file that was cut short meanwhile has a better reason.
    if (size := path.stat().st_size if path.is_file() else 0) != clip.size:
        raise VideoError(
            f"{path} has {size} bytes, {clip.size} when it was indexed; run the index stage again"
        )


def read_frames(path: Path, start: int, end: int, threads: int = 1) -> Iterator[np.ndarray]:
    """Yield the frames ``start`` to ``end - 1`` as (H, W, 3) uint8 RGB, turned as a player shows them.

    Frames are numbered as decoding from the first one counts them. Far into a file decoding begins at the
    nearest key frame, where the times of all packets (read once a file and kept) prove its number.

    Raises VideoError when the video ends before ``end``, when a frame is damaged, and when a frame's size
    differs from the first one's. Of the frames before ``start``, only those that are decoded are checked.
    """
    number, first_size = -1, None
    # One for all frames: making a converter costs as much as decoding a small frame.
    reformatter = VideoReformatter()
    for number, frame in _numbered(path, start, threads):
        size = (frame.height, frame.width)
        first_size = first_size or size
        if size != first_size:
            raise VideoError(
                f"{path}: frame {number} is {_by(size)} but frame 0 is {_by(first_size)}; "
                "encode the video again with one size"
            )
        if number >= start:
            yield _image(frame, reformatter)
        if number + 1 >= end:
            return
    raise VideoError(f"{path}: decoded {number + 1} of {end} frames; {_ADVICE}")


def _stat_and_digest(path: Path) -> tuple[os.stat_result, str]:
    try:
        # A pipe or a device may have no end, or no beginning.
        if path.exists() and not path.is_file():
            raise VideoError(f"{path} is no ordinary file: remove it")
        with path.open("rb") as file:
            return os.fstat(file.fileno()), digest_of(file)
    except OSError as error:
        raise VideoError(f"{path} can't be read ({error.strerror}): check the path and its rights") from error


@contextmanager
def _opened(path: Path, threads: int = 1) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        # `options` are for streams too: PyAV before 17.1 crashes where those are found late, as in MPEG.
        with av.open(path, container_options=_OPTIONS, **_TEXT) as container:
            # The cover picture of a sound file counts as a video stream.
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise VideoError(f"{path} has no video stream: remove it or give a file with pictures")
            # An MP4 file that lost its index at the end may still be taken for a stream.
            if streams[0].codec_context is None:
                raise VideoError(f"{path} is no video or its end is missing (no decoder fits): {_ADVICE}")
            streams[0].codec_context.thread_count = threads
            yield container, streams[0]
    except av.FFmpegError as error:
        raise VideoError(f"{path} is no video or its end is missing ({error.strerror}): {_ADVICE}") from error


def _numbered(path: Path, start: int, threads: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """Give numbered frames, the first one at ``start`` or before."""
    times = _times_of(path) if start >= _WORTH_SEEKING else None
    if times is not None and start < len(times.shown):
        number = -1
        try:
            for number, frame in _from_key(path, start, threads, times):
                yield number, frame
            return
        except VideoError:
            if number >= start:
                raise
    with _opened(path, threads) as (container, stream):
        yield from _decoded(path, container.decode(stream))


def _from_key(path: Path, start: int, threads: int, times: _Times) -> Iterator[tuple[int, av.VideoFrame]]:
    """Give numbered frames from the last key frame at or before ``start`` that can be reached.

    Raises VideoError as soon as they come otherwise than the packets' times say.
    """
    wanted = times.shown[start]
    with _opened(path, threads) as (container, stream):
        container.seek(int(times.keys[np.searchsorted(times.keys, wanted, "right") - 1]), stream=stream)
        packets = container.demux(stream)
        first = next(packets)
        if first.pts is None or first.pts > wanted or first.pts not in times.keys:
            raise VideoError(f"{path}: frame {start} can't be reached")
        key = int(np.searchsorted(times.shown, first.pts))
        frames = (frame for packet in chain([first], packets) for frame in packet.decode())
        # What is stored behind the key frame but shown before it leans on frames that were not decoded.
        shown = (frame for frame in frames if frame.pts is None or frame.pts >= first.pts)
        number = key - 1
        for number, frame in _decoded(path, shown, key):
            if number >= len(times.shown) or frame.pts != times.shown[number]:
                raise VideoError(f"{path}: frame {number} is missing or damaged; {_ADVICE}")
            # A stream that renews its picture bit by bit has key packets that need earlier frames.
            if number == key and (frame.pict_type, frame.height, frame.width) != (PictureType.I, *times.size):
                raise VideoError(f"{path}: frame {start} can't be reached")
            yield number, frame
        if number + 1 < len(times.shown):
            raise VideoError(f"{path}: frame {number + 1} is missing or damaged; {_ADVICE}")


def _times_of(path: Path) -> _Times | None:
    try:
        stat = path.stat()
    except OSError:
        return None  # opening it says what is wrong
    return _read_times(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=32)
def _read_times(path: Path, size: int, mtime_ns: int) -> _Times | None:
    """Read the times of all packets, or None where they don't prove the numbers of frames.

    ``size`` and ``mtime_ns`` stand for the file's content.
    """
    with _opened(path) as (container, stream):
        codec = stream.codec_context.name
        if codec not in _SEEKABLE_CODECS:
            return None
        most_moved = 0 if container.format.name == "avi" and codec in _FREELY_REORDERED else _MOST_REORDERED
        rows = (
            (_NO_TIME if p.pts is None else p.pts, p.size, p.is_keyframe, p.is_discard)
            for p in container.demux(stream)
            if p.size
        )
        packets = np.fromiter(rows, _PACKET)
    if codec == "mpeg4" and (packets["size"] <= _EMPTY_PACKET).any():
        return None
    order = np.argsort(packets["time"])
    moved = np.abs(order - np.arange(len(order)))
    if packets["time"].min(initial=0) == _NO_TIME or (moved > most_moved).any():
        return None
    packets = packets[order]
    return _trusted(path, packets["time"], packets["key"], packets["hidden"])


def _trusted(path: Path, times: np.ndarray, is_key: np.ndarray, hidden: np.ndarray) -> _Times | None:
    """Keep sorted times that are all different, if the first frames come as they say."""
    with _opened(path) as (container, stream):
        decoded = islice(_decoded(path, container.decode(stream)), _TRIED)
        first = [(frame.pts, (frame.height, frame.width)) for _, frame in decoded]
    shown = times[~hidden]
    if not first or [time for time, _ in first] != shown[:_TRIED].tolist() or (np.diff(times) == 0).any():
        return None
    return _Times(shown, times[is_key & ~hidden], first[0][1])


def _decoded(
    path: Path, frames: Iterator[av.VideoFrame], number: int = 0
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Number the frames from ``number`` on; a damaged one is an error."""
    try:
        for frame in frames:
            if frame.is_corrupt:
                raise VideoError(f"{path}: frame {number} is damaged; {_ADVICE}")
            yield number, frame
            number += 1
    except av.FFmpegError as error:
        raise VideoError(
            f"{path}: damaged after {number} decoded frames ({error.strerror}); {_ADVICE}"
        ) from error


def _count_packets(container: InputContainer, stream: VideoStream) -> _Packets:
    count, shown, damaged, end, sizes = 0, 0, False, 0.0, set[int]()
    for packet in container.demux():
        if packet.size == 0:
            continue
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index:
            count += 1
            shown += not packet.is_discard
            damaged |= packet.is_corrupt
            sizes.add(packet.size)
    return _Packets(count, shown, damaged, end, min(sizes, default=0))


def _listed_packets(stream: VideoStream) -> int:
    """Return how many packets the container lists, without those that an edit list cuts off; 0: no list."""
    # PyAV before 17 does not show the list, only how long it is before anything is cut off.
    return len(stream.index_entries) if _PYAV >= 17 else stream.frames


def _stated_seconds(container: InputContainer, stream: VideoStream) -> float:
    # The duration of an AVI file without its index is a guess from the bytes that are left.
    if container.format.name == "avi" and stream.average_rate:
        return float(stream.frames / stream.average_rate)
    return (container.duration or 0) / av.time_base


def _check_whole(path: Path, packets: _Packets, indexed: int, seconds: float) -> None:
    if packets.count == 0:
        raise VideoError(f"{path} holds no frames: {_ADVICE}")
    if packets.count < indexed:
        advice = _ADVICE if _PYAV >= 17 else f"{_ADVICE}; if it plays to its end, install av>=17"
        raise VideoError(f"{path} is cut short: it holds {packets.count} of {indexed} frames; {advice}")
    if packets.damaged:
        raise VideoError(
            f"{path} is cut short or damaged: some of its {packets.count} frames are not whole; {_ADVICE}"
        )
    if packets.end < seconds - _DURATION_SLACK:
        raise VideoError(
            f"{path} is cut short: it ends after {packets.end:.1f} of {seconds:.1f} s; {_ADVICE}"
        )


def _count_decoded(path: Path) -> int:
    with _opened(path) as (container, stream):
        return sum(1 for _ in _decoded(path, container.decode(stream)))


def _first_frame_size(path: Path) -> tuple[int, int]:
    with _opened(path) as (container, stream):
        _, frame = next(_decoded(path, container.decode(stream)), (0, None))
    if frame is None:
        raise VideoError(f"{path} holds no frames that can be decoded: {_ADVICE}")
    turned, _, _ = _orientation(frame)
    return (frame.width, frame.height) if turned else (frame.height, frame.width)


def _image(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    image = reformatter.reformat(frame, format="rgb24").to_ndarray()
    turned, upside_down, mirrored = _orientation(frame)
    image = image.swapaxes(0, 1) if turned else image
    return np.ascontiguousarray(image[:: -1 if upside_down else 1, :: -1 if mirrored else 1])


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return whether a player swaps rows and columns, and then reverses the rows, and the columns."""
    # A frame keeps its own `side_data`, which keeps the frame: each would stay until the collector runs.
    beside = SideDataContainer(frame)  # type: ignore[call-arg]  # which PyAV's types leave out
    if "DISPLAYMATRIX" not in beside:
        return False, False, False
    matrix = np.frombuffer(bytes(beside["DISPLAYMATRIX"]), np.int32).reshape(3, 3)
    # A place (x, y) is shown at (a x + c y, b x + d y).
    (a, b), (c, d) = matrix[:2, :2].tolist()
    turned = abs(b) + abs(c) > abs(a) + abs(d)
    return (True, b < 0, c < 0) if turned else (False, d < 0, a < 0)


def _by(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"

"""A clip in the middle of a video is what decoding from the first frame gives, wherever it starts."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from harcache.benchmarks.timing import side_by_side
from harcache.pipeline.video import frames as video
from harcache.pipeline.video.frames import VideoError, probe, read_frames

_FRAMES = 90
_H264 = {"x264-params": "scenecut=0:b-adapt=0:bframes=3:keyint=20"}
_OPEN = {"x264-params": _H264["x264-params"] + ":open-gop=1"}
_REFRESHED = {"x264-params": "scenecut=0:bframes=0:keyint=20:intra-refresh=1"}
_HEVC = {"x265-params": "open-gop=1:keyint=20:bframes=3:log-level=none"}
_HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime"}
_EVEN = [40 * number for number in range(_FRAMES)]  # milliseconds
_UNEVEN = np.cumsum(np.random.default_rng(1).integers(5, 90, _FRAMES)).tolist()
_LATE = [time + 10_000 for time in _EVEN]

# name of the file, codec and its options, times of the frames
_SEEKABLE = [
    ("b-frames.mp4", "libx264", _H264, _EVEN),
    ("b-frames.mov", "libx264", _H264, _EVEN),
    ("b-frames.flv", "libx264", _H264, _EVEN),
    ("open-groups.mp4", "libx264", _OPEN, _EVEN),
    ("open-groups.mkv", "libx264", _OPEN, _EVEN),
    ("open-groups-hevc.mp4", "libx265", _HEVC, _EVEN),
    ("uneven.mp4", "libx264", _H264, _UNEVEN),
    ("uneven.mkv", "libx264", _OPEN, _UNEVEN),
    ("late.mp4", "libx264", _H264, _LATE),
    ("late.mkv", "libx264", _OPEN, _LATE),
    ("plain.avi", "mpeg4", {"g": "12"}, _EVEN),
    ("b-frames.avi", "mpeg4", {"g": "12", "bf": "2"}, _EVEN),
    ("b-frames.mkv", "mpeg4", {"g": "12", "bf": "2"}, _UNEVEN),
    ("pictures.avi", "mjpeg", {}, _EVEN),
    ("b-frames-2.mkv", "mpeg2video", {"g": "12", "bf": "2"}, _EVEN),
    ("pictures-unseen.webm", "libvpx-vp9", {"g": "20"} | _HIDDEN, _EVEN),
]
_NOT_SEEKABLE = [
    ("no-times.h264", "libx264", _H264, _EVEN),
    ("guessed-times.avi", "libx264", _H264, _EVEN),
    ("refreshed-bit-by-bit.mp4", "libx264", _REFRESHED, _EVEN),
    ("packets-of-no-frame.webm", "libvpx", {"g": "20"} | _HIDDEN, _EVEN),
    ("no-list.mpg", "mpeg2video", {"g": "12", "bf": "2"}, _EVEN),
    ("no-list.ts", "libx264", _OPEN, _LATE),
    ("other.wmv", "wmv2", {"g": "12"}, _EVEN),
]


@pytest.fixture
def from_the_first_frame_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seek for every start, so that short files show what happens in long ones."""
    monkeypatch.setattr(video, "_WORTH_SEEKING", 0)


def _pictures(count: int, height: int, width: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    ground = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (width, height))
    for number in range(count):
        picture = np.roll(ground, 2 * number, axis=1)
        cv2.putText(picture, f"{number}", (2, height // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255))
        yield picture


def _encode(
    path: Path, codec: str, options: dict[str, str], times: Sequence[int], size: tuple[int, int] = (48, 64)
) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        # AVI and MPEG-2 count frames; the others keep the milliseconds.
        counts = path.suffix == ".avi" or codec == "mpeg2video"
        unit = Fraction(1, 25) if counts else Fraction(1, 1000)
        stream.codec_context.time_base = unit
        for time, picture in zip(times, _pictures(len(times), *size), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = int(Fraction(time, 1000) / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _one_after_another(path: Path) -> list[np.ndarray]:
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def _begun_at(path: Path, start: int) -> int:
    """The number of the first frame that is decoded for a clip that starts at ``start``."""
    return next(video._numbered(path, start, 1))[0]


def _assert_every_start_is_exact(path: Path) -> None:
    expected = _one_after_another(path)
    assert probe(path).frames == len(expected)
    for start in range(len(expected)):
        end = min(start + 2, len(expected))
        found = list(read_frames(path, start, end))
        np.testing.assert_array_equal(found, expected[start:end], err_msg=f"{path.name} from {start}")


def _size(codec: str) -> tuple[int, int]:
    # Packets of small MPEG-4 pictures are as small as those that hold no frame.
    return (240, 320) if codec == "mpeg4" else (48, 64)


def _emptied(packet: bytes) -> bytes:
    """The header of an MPEG-4 frame with its flag "coded" cleared: nothing is shown for it."""
    start = packet.index(b"\x00\x00\x01\xb6") + 4
    bits = "".join(f"{byte:08b}" for byte in packet[start : start + 4])
    # Type, whole seconds up to a 0, a marker, the time in fractions (5 bits at 25 a second), a marker.
    coded = bits.index("0", 2) + 1 + 1 + 5 + 1
    bits = (bits[:coded] + "0").ljust(24, "1")
    return packet[:start] + int(bits, 2).to_bytes(3, "big")


@pytest.mark.usefixtures("from_the_first_frame_on")
@pytest.mark.parametrize(
    ("name", "codec", "options", "times"), _SEEKABLE, ids=[case[0] for case in _SEEKABLE]
)
def test_every_start_gives_the_frames_of_decoding_from_the_first(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], times: list[int]
) -> None:
    path = _encode(tmp_path / name, codec, options, times, _size(codec))
    _assert_every_start_is_exact(path)
    assert _begun_at(path, _FRAMES - 1) > _FRAMES // 2


@pytest.mark.usefixtures("from_the_first_frame_on")
@pytest.mark.parametrize(
    ("name", "codec", "options", "times"), _NOT_SEEKABLE, ids=[case[0] for case in _NOT_SEEKABLE]
)
def test_where_packets_do_not_prove_a_frames_number_decoding_begins_at_the_first(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], times: list[int]
) -> None:
    path = _encode(tmp_path / name, codec, options, times, _size(codec))
    _assert_every_start_is_exact(path)
    assert _begun_at(path, _FRAMES - 1) == 0


@pytest.mark.skipif(video._PYAV < 17, reason="PyAV before 17 does not show lists of packets")
@pytest.mark.usefixtures("from_the_first_frame_on")
def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path: Path) -> None:
    source, path = _encode(tmp_path / "a.mp4", "libx264", _OPEN, _EVEN), tmp_path / "b.mp4"
    with av.open(source) as whole, av.open(path, "w") as part:
        stream = part.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                shift = int(Fraction(50 * 40, 1000) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                part.mux(packet)
    assert probe(path).frames == _FRAMES - 50
    _assert_every_start_is_exact(path)
    assert _begun_at(path, _FRAMES - 51) > 20


@pytest.mark.usefixtures("from_the_first_frame_on")
def test_times_that_occur_twice_prove_nothing(tmp_path: Path) -> None:
    source, path = _encode(tmp_path / "a.mkv", "mpeg4", {"g": "12"}, _EVEN, (240, 320)), tmp_path / "b.mkv"
    with av.open(source) as whole, av.open(path, "w") as copy:
        stream = copy.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(whole.demux(video=0)):
            if packet.dts is not None:
                packet.pts = packet.dts = 40 * (number - (number == 40))
                packet.stream = stream
                copy.mux(packet)
    _assert_every_start_is_exact(path)
    assert _begun_at(path, _FRAMES - 1) == 0


@pytest.mark.usefixtures("from_the_first_frame_on")
def test_packets_that_hold_no_frame_do_not_shift_the_numbers(tmp_path: Path) -> None:
    source, path = _encode(tmp_path / "a.avi", "mpeg4", {"g": "12"}, _EVEN, (240, 320)), tmp_path / "b.avi"
    with av.open(source) as whole, av.open(path, "w") as copy:
        stream = copy.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(whole.demux(video=0)):
            if packet.dts is not None:
                empty = av.Packet(_emptied(bytes(packet)) if number == 50 else bytes(packet))
                empty.pts, empty.dts, empty.time_base = number, number, packet.time_base
                empty.stream, empty.is_keyframe = stream, packet.is_keyframe
                copy.mux(empty)
    expected = _one_after_another(path)
    assert len(expected) == _FRAMES - 1 == probe(path).frames
    for start in range(40, _FRAMES - 1):
        np.testing.assert_array_equal(next(read_frames(path, start, start + 1)), expected[start])


@pytest.mark.usefixtures("from_the_first_frame_on")
def test_damage_in_the_clip_is_found_behind_a_key_frame_and_damage_before_it_costs_nothing(
    tmp_path: Path,
) -> None:
    path = _encode(tmp_path / "a.mp4", "libx264", _H264, _EVEN, (96, 128))
    expected = _one_after_another(path)
    with av.open(path) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    begin, size = places[45]
    data[begin + size // 4 : begin + size] = bytes(size - size // 4)
    path.write_bytes(data)
    np.testing.assert_array_equal(list(read_frames(path, 65, 80)), expected[65:80])
    with pytest.raises(VideoError, match="damaged"):
        list(read_frames(path, 41, 60))


@pytest.mark.usefixtures("from_the_first_frame_on")
def test_a_clip_past_the_end_is_an_error_that_counts_the_frames(tmp_path: Path) -> None:
    path = _encode(tmp_path / "a.mp4", "libx264", _H264, _EVEN)
    for start in (80, 200):
        with pytest.raises(VideoError, match="decoded 90 of 300 frames"):
            list(read_frames(path, start, 300))


def test_the_times_are_read_once_and_again_when_the_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_the_first_frame_on: None
) -> None:
    tables: list[int] = []
    real = video._trusted
    monkeypatch.setattr(video, "_trusted", lambda *args: tables.append(1) or real(*args))
    path = _encode(tmp_path / "a.mkv", "libx264", _H264, _EVEN)
    for start in range(40, 50):
        next(read_frames(path, start, start + 1))
    assert len(tables) == 1
    _encode(path, "libx264", _H264, _EVEN[:60])
    with pytest.raises(VideoError, match="decoded 60 of 71"):
        list(read_frames(path, 70, 71))
    assert len(tables) == 2


def test_a_clip_near_the_beginning_reads_no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def _refuse(*_: object) -> None:
        raise AssertionError("the times were read")

    monkeypatch.setattr(video, "_read_times", _refuse)
    path = _encode(tmp_path / "a.mp4", "libx264", _H264, _EVEN)
    assert len(list(read_frames(path, 60, 70))) == 10


def test_clips_late_in_a_long_video_are_read_several_times_as_fast(tmp_path: Path) -> None:
    path = _encode(tmp_path / "a.mp4", "libx264", _H264, [40 * number for number in range(1000)], (144, 176))

    def _late() -> None:
        video._read_times.cache_clear()
        for start in range(800, 1000, 20):
            list(read_frames(path, start, start + 10))

    def _whole() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(video, "_WORTH_SEEKING", 10_000)
            list(read_frames(path, 800, 810))

    # Ten clips with the times read, against one that is reached by decoding from the first frame.
    seconds = side_by_side({"seek": _late, "decode": _whole}, rounds=2)
    assert seconds["seek"] < 10 * seconds["decode"] / 3, seconds

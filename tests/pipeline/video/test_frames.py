import os
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.video import frames as video
from harcache.pipeline.video.frames import VideoError, probe, read_frames
from harcache.pipeline.video.writing import write_video

_REAL_VIDEOS = Path(__file__).parents[4] / "shared" / "videos"
_REAL = {
    "S001C001P001R001A001_rgb.avi": (103, 1080, 1920, 30.0),
    "demo.mp4": (280, 256, 340, 28.0),
    "part_0.mp4": (32, 256, 340, 30.0),
    "test.avi": (164, 240, 320, 25.0),
    "test.mp4": (300, 256, 340, 30.0),
}


def _real(name: str) -> Path:
    path = _REAL_VIDEOS / name
    if not path.is_file():
        pytest.skip(f"the sample videos are not here: {path} is missing")
    return path


def _pictures(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frame i is grey 40 + 5 i above, with noise below, so that frames are told apart and take some bytes."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    frames[:, : height // 2] = (40 + 5 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    return list(frames)


def _numbers(frames: list[np.ndarray]) -> list[int]:
    return [round((float(frame[:16].mean()) - 40) / 5) for frame in frames]


def _encode(path: Path, frames: list[np.ndarray], codec: str, **options: str) -> Path:
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def _sound(path: Path) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("name", _REAL)
def test_real_videos_have_the_known_frames_and_sizes(name: str) -> None:
    found = probe(_real(name))
    assert (found.frames, found.height, found.width, found.fps) == _REAL[name]
    assert found.size == _real(name).stat().st_size


@pytest.mark.parametrize("name", ["part_0.mp4", "test.avi"])
def test_every_counted_frame_of_a_real_video_can_be_read(name: str) -> None:
    frames = list(read_frames(_real(name), 0, _REAL[name][0]))
    assert len(frames) == _REAL[name][0]
    assert {(f.shape, f.dtype) for f in frames} == {((*_REAL[name][1:3], 3), np.dtype(np.uint8))}


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov", ".m4v"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_written_video_holds_its_frames_in_order(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_video(path, _pictures(30), fps=25, codec=codec, crf=5)
    found = probe(path)
    assert (found.frames, found.height, found.width, found.fps) == (30, 48, 64, 25.0)
    assert _numbers(list(read_frames(path, 0, 30))) == list(range(30))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".mpg", "mpeg2video"), (".wmv", "wmv2"), (".webm", "libvpx"), (".webm", "libvpx-vp9")],
)
def test_containers_that_state_no_count_are_counted(tmp_path: Path, suffix: str, codec: str) -> None:
    assert probe(_encode(tmp_path / f"a{suffix}", _pictures(30), codec)).frames == 30


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_the_same_frames_give_the_same_bytes_of_mpeg4(tmp_path: Path, name: str) -> None:
    contents = []
    for _ in range(2):
        write_video(tmp_path / name, _pictures(12), fps=25, codec="mpeg4", crf=3)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


def test_the_digest_follows_the_bytes_and_not_the_name(tmp_path: Path) -> None:
    first, copy, other = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4"
    write_video(first, _pictures(3), fps=25)
    copy.write_bytes(first.read_bytes())
    write_video(other, _pictures(4), fps=25)
    assert probe(first).digest == probe(copy).digest != probe(other).digest
    assert len(probe(first).digest) == 32


def test_a_range_gives_those_frames_alone_with_any_number_of_threads(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, _pictures(20), fps=25, crf=5)
    one, four = (list(read_frames(path, 7, 12, threads=threads)) for threads in (1, 4))
    assert _numbers(one) == [7, 8, 9, 10, 11]
    assert np.array_equal(one, four)


def test_a_range_past_the_end_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, _pictures(20), fps=25)
    with pytest.raises(VideoError, match="decoded 20 of 25 frames"):
        list(read_frames(path, 0, 25))


@pytest.mark.skipif(video._PYAV < 15, reason="PyAV 14 writes such a file without its parameters")
def test_a_video_cut_without_encoding_it_again_counts_only_what_is_shown(tmp_path: Path) -> None:
    source, path = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video(source, _pictures(30), fps=25)
    with av.open(source) as whole, av.open(path, "w") as part:
        stream = part.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                # Shown from frame 10 on: the container hides what lies before 0.
                shift = int(10 / 25 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                part.mux(packet)
    assert probe(path).frames == len(list(read_frames(path, 0, 20))) == 20


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
def test_a_title_in_any_encoding_leaves_the_frames_to_be_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with av.open(path, "w") as container:
        container.metadata["title"] = "of the film"
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for picture in _pictures(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    assert b"of the film" in content
    path.write_bytes(content.replace(b"of the film", b"\xfcber \xff\xfe\xe9\xe9\xe9\xe9"))
    assert probe(path).frames == len(list(read_frames(path, 0, 20))) == 20


def _skipping_avi(path: Path) -> Path:
    """Write 20 frames and 5 empty packets, which show a frame for longer."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number, picture in enumerate(_pictures(20)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number + (5 if number > 10 else 0)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.skipif(video._PYAV < 17, reason="PyAV before 17 does not show lists of packets")
def test_an_avi_that_skips_frames_is_no_damaged_one(tmp_path: Path) -> None:
    path = _skipping_avi(tmp_path / "a.avi")
    assert probe(path).frames == len(list(read_frames(path, 0, 20))) == 20


def test_an_avi_that_skips_frames_is_refused_where_pyav_shows_no_list_of_packets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _skipping_avi(tmp_path / "a.avi")
    monkeypatch.setattr(video, "_PYAV", min(16, video._PYAV))
    with pytest.raises(VideoError, match=r"holds 20 of 25 frames; .* if it plays to its end, install av>=17"):
        probe(path)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((0, -1, 1, 0), np.rot90),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
        ((0, 0, 0, 0), lambda image: image),
    ],
    ids=["left", "right", "half", "mirrored", "upside-down", "diagonal", "none"],
)
def test_a_turned_or_mirrored_video_is_read_as_it_is_shown(
    tmp_path: Path, matrix: tuple[int, int, int, int], shown: Callable[[np.ndarray], np.ndarray]
) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, _pictures(3), fps=25, crf=5)
    upright = next(read_frames(path, 0, 1))
    # The matrix of the track header.
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (value * (1 << 16) for value in matrix)
    other = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    before, header, after = path.read_bytes().partition(b"tkhd")
    path.write_bytes(before + header + after.replace(identity, other, 1))
    found = probe(path)
    assert (found.height, found.width, 3) == shown(upright).shape
    assert np.array_equal(next(read_frames(path, 0, 1)), shown(upright))


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("end.mp4", {}),
        ("front.mp4", {"movflags": "faststart"}),
        ("fragments.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.avi", {}),
        ("a.mkv", {}),
    ],
)
def test_a_video_cut_short_is_found(tmp_path: Path, name: str, options: dict[str, str], share: float) -> None:
    path = _encode(tmp_path / name, _pictures(200), "libx264", **options)
    assert probe(path).frames == 200
    with pytest.raises(VideoError, match=r"cut short|its end is missing"):
        probe(_cut(path, share))


@pytest.mark.parametrize("name", ["S001C001P001R001A001_rgb.avi", "test.avi", "test.mp4"])
def test_a_real_video_cut_short_is_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(_real(name).read_bytes())
    with pytest.raises(VideoError, match=r"cut short|its end is missing"):
        probe(_cut(path, 0.7))


def test_what_is_no_video_is_told_apart(tmp_path: Path) -> None:
    text, empty, missing = tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "missing.mp4"
    text.write_text("this is not a video\n" * 100)
    empty.touch()
    with pytest.raises(VideoError, match=r"text\.mp4 is no video"):
        probe(text)
    with pytest.raises(VideoError, match=r"empty\.mp4 is empty \(0 bytes\)"):
        probe(empty)
    with pytest.raises(VideoError, match=r"missing\.mp4 can't be read \(No such file"):
        probe(missing)
    with pytest.raises(VideoError, match=r"sound\.mp4 has no video stream"):
        probe(_sound(tmp_path / "sound.mp4"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, _pictures(3), fps=25)
    path.chmod(0)
    with pytest.raises(VideoError, match="Permission denied"):
        probe(path)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4")])
def test_damage_in_the_middle_is_found_while_reading(tmp_path: Path, name: str, codec: str) -> None:
    path = _encode(tmp_path / name, _pictures(40), codec)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"damaged|decoded \d+ of 40"):
        list(read_frames(path, 0, 40))


def test_a_change_of_size_is_an_error(tmp_path: Path) -> None:
    for name, width in (("a.mpg", 64), ("b.mpg", 96)):
        _encode(tmp_path / name, _pictures(10, width=width), "mpeg2video")
    joined = tmp_path / "joined.mpg"
    joined.write_bytes((tmp_path / "a.mpg").read_bytes() + (tmp_path / "b.mpg").read_bytes())
    with pytest.raises(VideoError, match="is 96x48 but frame 0 is 64x48"):
        list(read_frames(joined, 0, 20))


def test_frames_that_the_pixel_format_can_not_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HarcacheError, match="can't write 65x48; expected frames of even width"):
        write_video(tmp_path / "a.mp4", _pictures(2, width=65), fps=25)
    with pytest.raises(HarcacheError, match="can't write no frames"):
        write_video(tmp_path / "a.mp4", [], fps=25)
    with pytest.raises(HarcacheError, match="Did you mean 'libx264'"):
        write_video(tmp_path / "a.mp4", _pictures(2), fps=25, codec="libx265")
    assert not list(tmp_path.iterdir())

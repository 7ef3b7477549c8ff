"""Bad videos in one dataset with good ones, bad tables and arrays: docs/bad-inputs.md says how each ends."""

import os
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from harcache.cache.annotations import read_detections, write_detections, write_poses
from harcache.cache.clip_store import open_store
from harcache.commands.poses import import_poses
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip, read_manifest, write_manifest
from harcache.pipeline.datasets.drawn_figures.backgrounds import make_room
from harcache.pipeline.datasets.drawn_figures.figures import render
from harcache.pipeline.datasets.drawn_figures.performers import make_look
from harcache.pipeline.datasets.drawn_figures.scenes import make_scene
from harcache.pipeline.params import FolderIndexParams, ImportedPoseParams, IndexParams, NoDetectParams
from harcache.pipeline.skeletons.imported import ImportedPose, write_imported_poses
from harcache.pipeline.video.writing import write_video
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import read_failures
from harcache.stages import crop, detect, heatmap, index, pose, rgb
from harcache.stages.persons.given_boxes import read_boxes
from harcache.stages.persons.tracking import link_persons
from harcache.stages.shared.workspace import Workspace
from tests.tiny_demo import PARAMS

_STAGES = {"index": index, "detect": detect, "pose": pose, "crop": crop, "heatmap": heatmap, "rgb": rgb}
_FRAMES = 12
_DOC = Path(__file__).parents[1] / "docs" / "bad-inputs.md"


@dataclass(frozen=True)
class Case:
    """A bad input and its end: made at ``path`` in the folder of videos, known as ``id`` in ``stage``'s list.

    ``status`` "ok" is a clip that all stages build.
    """

    what: str
    path: str
    make: Callable[[Path], None]
    id: str
    stage: str = "index"
    status: str = "failed"
    says: str = ""


def _figure(count: int = _FRAMES) -> list[np.ndarray]:
    """Frames (144, 192, 3) of one of the demo's figures."""
    rng = np.random.default_rng(5)
    room = make_room((144, 192), rng)
    scene = make_scene(5, 2, (make_look(rng),), count, room, rng, rng)
    return [render(scene, t) for t in range(count)]


def _write(path: Path) -> None:
    write_video(path, _figure(), 25, "mpeg4", 3)


def _encode(
    path: Path,
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] | None = None,
    times: Callable[[int], int] = lambda number: 40 * number,
    count: int = _FRAMES,
    format: str | None = None,
    **options: str,
) -> None:
    with av.open(path, "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=25, options={"qscale": "3", "flags": "+qscale"})
        height, width = size or (144, 192)
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        stream.codec_context.time_base = Fraction(1, 25 if codec in ("mpeg2video", "mpeg4") else 1000)
        for number, picture in enumerate(_figure(count)):
            frame = av.VideoFrame.from_ndarray(cv2.resize(picture, (width, height)), format="rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = times(number)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _short(path: Path) -> None:
    _encode(path, count=2)


def _cut(share: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        _encode(path, movflags="faststart")
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return make


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _sound(path: Path, cover: bool = False) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000)
        picture = container.add_stream("mjpeg", rate=1) if cover else None
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        if picture is not None:
            picture.height, picture.width, picture.pix_fmt = 144, 192, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic.value
            container.mux(picture.encode(av.VideoFrame.from_ndarray(_figure(1)[0], format="rgb24")))
            container.mux(picture.encode())
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _cover(path: Path) -> None:
    _sound(path, cover=True)


def _no_frames(path: Path) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 144, 192, "yuv420p"
        container.start_encoding()


def _turned(path: Path) -> None:
    _write(path)
    # The matrix of the track header: identity becomes a quarter turn to the left.
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    quarter = struct.pack(">9i", 0, -(1 << 16), 0, 1 << 16, 0, 0, 0, 0, 1 << 30)
    before, header, after = path.read_bytes().partition(b"tkhd")
    path.write_bytes(before + header + after.replace(identity, quarter, 1))


def _damaged(path: Path, begin: float = 0.4, end: float = 0.6) -> None:
    _write(path)
    data = bytearray(path.read_bytes())
    first, last = int(len(data) * begin), int(len(data) * end)
    data[first:last] = bytes(last - first)
    path.write_bytes(data)


def _two_sizes(path: Path) -> None:
    parts = [path.with_name(f".{width}.mpg") for width in (192, 96)]
    for part, width in zip(parts, (192, 96), strict=True):
        _encode(part, "mpeg2video", size=(144, width))
    path.write_bytes(b"".join(part.read_bytes() for part in parts))


def _linked(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _empty_room(path: Path) -> None:
    write_video(path, [np.full((144, 192, 3), 90, np.uint8)] * _FRAMES, 25, "mpeg4", 3)


def _standing_still(path: Path) -> None:
    """Copy packets with the same time for three at a time."""
    source = path.with_name(".even.mkv")
    _encode(source)
    with av.open(source) as whole, av.open(path, "w") as copy:
        stream = copy.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(whole.demux(video=0)):
            if packet.dts is not None:
                packet.pts = packet.dts = 40 * (number // 3)
                packet.stream = stream
                copy.mux(packet)


_PICTURE = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
_SCRIPT = b"ffconcat version 1.0\nfile good.mp4\n"
_PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
# Cut in the header, between frames and in them.
_CUTS = {0.01: "is no video or its end is missing"} | dict.fromkeys(
    (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9), "of 12 frames"
)
_CUTS |= {0.96: "not whole", 0.999: "not whole"}
CASES = [
    *(
        Case(
            f"cut off after {share:.1%} of its bytes",
            f"a/cut{number}.mp4",
            _cut(share),
            f"a__cut{number}",
            says=says,
        )
        for number, (share, says) in enumerate(_CUTS.items())
    ),
    Case("no bytes", "a/empty.mp4", _bytes(b""), "a__empty", says="is empty (0 bytes)"),
    Case("text", "a/text.mp4", _bytes(b"not a video\n" * 99), "a__text", says="is no video"),
    Case("zeros", "a/zeros.avi", _bytes(bytes(9999)), "a__zeros", says="is no video"),
    Case(
        "a header and then zeros",
        "a/noise.mp4",
        lambda p: _damaged(p, 0.02, 1),
        "a__noise",
        says="is no video",
    ),
    Case("a picture named .mp4", "a/picture.mp4", _bytes(_PICTURE), "a__picture", says="is no video"),
    Case(
        "a list of other files named .mp4", "a/script.mp4", _bytes(_SCRIPT), "a__script", says="is no video"
    ),
    Case("a playlist of an address", "a/list.mkv", _bytes(_PLAYLIST), "a__list", says="is no video"),
    Case("sound alone", "a/sound.mp4", _sound, "a__sound", says="has no video stream"),
    Case("sound with a cover picture", "a/cover.mp4", _cover, "a__cover", says="has no video stream"),
    Case("no frames", "a/none.mkv", _no_frames, "a__none", says="is no video or its end is missing"),
    Case("a link to nothing", "a/dangling.mp4", _linked("nowhere.mp4"), "a__dangling", says="can't be read"),
    Case("a link to itself", "a/self.mp4", _linked("self.mp4"), "a__self", says="can't be read"),
    Case(
        "a link to a device without end",
        "a/zero.mp4",
        _linked("/dev/zero"),
        "a__zero",
        says="no ordinary file",
    ),
    Case("a pipe", "a/pipe.mp4", os.mkfifo, "a__pipe", says="no ordinary file"),
    Case("damaged packets in an AVI", "a/hole.avi", _damaged, "a__hole", says="of 12 frames"),
    Case("damaged packets in an MP4", "a/damaged.mp4", _damaged, "a__damaged", "detect", says="is damaged"),
    Case(
        "two sizes of frames", "a/sizes.mpg", _two_sizes, "a__sizes", "detect", says="encode the video again"
    ),
    Case(
        "a second file of one id",
        "a__avi.mp4",
        _write,
        "a__avi.mp4",
        status="skipped",
        says="has the id a__avi of a/avi",
    ),
    Case(
        "a name that is not UTF-8",
        "a/\udcff.mp4",
        _write,
        "a/\\udcff.mp4",
        status="skipped",
        says="not UTF-8",
    ),
    Case("a hidden file", "a/..hidden.mp4", _write, "a__hidden", status="not looked at"),
    Case("a folder with a video's name", "a/folder.mp4", Path.mkdir, "a__folder", status="not looked at"),
    Case("a link to the folder above", "a/loop", _linked(".."), "a__loop__good", status="not looked at"),
    Case("an AVI named .mp4", "a/avi.mp4", lambda p: _encode(p, format="avi"), "a__avi", status="ok"),
    Case("one frame", "a/one.mp4", lambda p: _encode(p, count=1), "a__one", status="ok"),
    Case("nobody in it", "a/room.mp4", _empty_room, "a__room", status="ok"),
    Case("8K", "a/8k.mp4", lambda p: _encode(p, size=(4320, 7680), count=1), "a__8k", status="ok"),
    Case(
        "two pixels high", "a/flat.mp4", lambda p: _encode(p, size=(2, 192), count=3), "a__flat", status="ok"
    ),
    Case(
        "odd width and height",
        "a/odd.mkv",
        lambda p: _encode(p, "ffv1", "yuv444p", (143, 191), count=3),
        "a__odd",
        status="ok",
    ),
    Case(
        "grey in 10 bits",
        "a/grey.mkv",
        lambda p: _encode(p, "ffv1", "gray10le", count=3),
        "a__grey",
        status="ok",
    ),
    Case("turned by its metadata", "a/turned.mp4", _turned, "a__turned", status="ok"),
    Case(
        "frames at uneven times",
        "a/uneven.mkv",
        lambda p: _encode(p, "mjpeg", "yuvj420p", times=lambda n: 7 * n * n, count=4),
        "a__uneven",
        status="ok",
    ),
    Case("frames at the same time", "a/still.mkv", _standing_still, "a__still", status="ok"),
    Case(
        "a link to a file elsewhere",
        "a/link.mp4",
        _linked("../../../elsewhere/good.mp4"),
        "a__link",
        status="ok",
    ),
    Case("a name with ..", "a/up..down.mp4", _short, "a__up..down", status="ok"),
    Case("a name with spaces and Unicode", "a/при вет.mp4", _short, "a__при_вет", status="ok"),
    Case("a name that starts with a dash", "a/-rf.mp4", _short, "a__-rf", status="ok"),
    Case("a name with a line break", "a/line\nbreak.mp4", _short, "a__line_break", status="ok"),
    Case("a name that a shell would run", "a/',;$(touch ran).mp4", _short, "a___touch_ran_", status="ok"),
    Case("a name of 255 bytes", f"a/{'n' * 251}.mp4", _short, f"a__{'n' * 251}", status="ok"),
]


class _Attack:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch ran",)


def _entry(**other: object) -> dict[str, object]:
    keypoints = np.ones((1, 4, 17, 2), np.float16)
    return (
        {"frame_dir": "a", "label": 0, "total_frames": 4, "img_shape": (9, 9), "original_shape": (9, 9)}
        | {"keypoint": keypoints, "keypoint_score": keypoints[..., 0]}
        | other
    )


def _index(workspace: Workspace, params: IndexParams | FolderIndexParams, video: str) -> None:
    """Index the folder with one good video of four frames."""
    (workspace.videos / video).parent.mkdir(parents=True, exist_ok=True)
    _encode(workspace.videos / video, count=4)
    with Engine(workers=0) as engine:
        index.run(replace(PARAMS, name="small", index=params), workspace, engine)


def _table(content: str | bytes) -> Callable[[Path], object]:
    def attempt(folder: Path) -> None:
        workspace = _workspace(folder)
        workspace.videos.mkdir(parents=True)
        raw = content if isinstance(content, bytes) else content.encode()
        (workspace.videos / "table.csv").write_bytes(raw)
        _index(workspace, FolderIndexParams("folder", table="table.csv"), "good.mp4")

    return attempt


def _workspace(project: Path) -> Workspace:
    return Workspace.under(project, "small", project / "videos", max_failed=0)


def _pickle(content: object) -> Callable[[Path], object]:
    def attempt(folder: Path) -> None:
        raw = content if isinstance(content, bytes) else pickle.dumps(content)
        (folder / "poses.pkl").write_bytes(raw)
        import_poses(folder / "poses.pkl", folder / "poses.h5")

    return attempt


def _boxes(*values: float) -> Callable[[Path], object]:
    return lambda _: link_persons([np.array([values], np.float32)], 2)


def _given(*rows: str) -> Callable[[Path], object]:
    def attempt(folder: Path) -> None:
        (folder / "boxes.csv").write_text("\n".join(["clip,frame,x1,y1,x2,y2,score", *rows]))
        read_boxes(folder / "boxes.csv")

    return attempt


def _manifest(line: str) -> Callable[[Path], object]:
    def attempt(folder: Path) -> None:
        columns = "id,video,start,end,frames,height,width,fps,size,mtime_ns,digest"
        (folder / "manifest.csv").write_text(f"{columns}\n{line}\n")
        read_manifest(folder / "manifest.csv")

    return attempt


def _crops(line: str) -> Callable[[Path], object]:
    def attempt(folder: Path) -> None:
        (folder / "crops.csv").write_text(f"id,x1,y1,x2,y2,source,fingerprint\n{line}\n")
        crop.read_crops(folder / "crops.csv")

    return attempt


def _matched(*ids: str) -> Callable[[Path], object]:
    """Poses of these ids for the clips ``wave__1`` and ``wave__2`` of wave/1.mp4 and wave/2.mp4."""

    def attempt(folder: Path) -> None:
        workspace = _workspace(folder)
        clips = [Clip(f"wave__{n}", f"wave/{n}.mp4", 0, 4, 9, 9, 25.0, 1, 1, "x") for n in (1, 2)]
        write_manifest(workspace.manifest, clips)
        keypoints, scores = np.ones((1, 4, 17, 2), np.float32), np.ones((1, 4, 17), np.float32)
        write_imported_poses(folder / "poses.h5", [ImportedPose(id, keypoints, scores) for id in ids], {})
        given = ImportedPoseParams("import", str(folder / "poses.h5"), 2)
        params = replace(PARAMS, name="small", detect=NoDetectParams("none"), pose=given)
        with Engine(workers=0) as engine:
            detect.run(params, workspace, engine)
            pose.run(params, workspace, engine)

    return attempt


def _older_crops(folder: Path) -> None:
    """Have rgb read crops of one clip, where the manifest has two."""
    workspace = _workspace(folder)
    write_manifest(workspace.manifest, [Clip(n, "a.mp4", 0, 4, 9, 9, 25.0, 1, 1, "x") for n in ("a", "b")])
    workspace.crops.write_text("id,x1,y1,x2,y2,source,fingerprint\na,0,0,9,9,persons,x\n")
    with Engine(workers=0) as engine:
        rgb.run(replace(PARAMS, name="small"), workspace, engine)


def _hdf5(content: bytes) -> Callable[[Path], object]:
    def attempt(folder: Path) -> None:
        (folder / "part.h5").write_bytes(content)
        read_detections(folder / "part.h5", "a")

    return attempt


def _refused_video(path: str) -> str:
    return f"a,{path},0,4,4,9,9,25,1,1,x"


@dataclass(frozen=True)
class Refusal:
    """A table or an array, what reads it, and what the error says."""

    what: str
    attempt: Callable[[Path], object]
    says: str


@dataclass(frozen=True)
class Repair:
    """An annotation, how it is indexed, and what is recorded of the repair."""

    what: str
    attempt: Callable[[Path], object]
    says: str


REFUSALS = [
    Refusal("table: no column of paths", _table("video,label\ngood.mp4,a\n"), "no column 'path'"),
    Refusal("table: a path out of the folder", _table("path,label\n../good.mp4,a\n"), "without '..'"),
    Refusal(
        "table: a path from the root",
        _table("path,label\n/etc/passwd,a\n"),
        "expected a path under the folder",
    ),
    Refusal(
        "table: a clip listed twice", _table("path\ngood.mp4\ngood.mp4\n"), "line 3: good.mp4 is listed twice"
    ),
    Refusal(
        "table: too many values", _table("path,label\ngood.mp4,a,b\n"), "line 2: wrong number of columns"
    ),
    Refusal(
        "table: an unknown split", _table("path,label,split\ngood.mp4,a,trian\n"), "Did you mean 'train'"
    ),
    Refusal(
        "table: a start that is no number", _table("path,start\ngood.mp4,-1\n"), "expected a whole number"
    ),
    Refusal(
        "table: an end before the start", _table("path,start,end\ngood.mp4,3,2\n"), "expected start < end"
    ),
    Refusal("table: not UTF-8", _table(b"path,label\ngood.mp4,\xff\n"), "line 2: byte 0xff is not UTF-8"),
    Refusal("table: a quote that never ends", _table('path,label\ngood.mp4,"a\n'), "unexpected end of data"),
    Refusal(
        "table: a clip after the video's end", _table("path,start\ngood.mp4,9\n"), "but good.mp4 has 4 frames"
    ),
    Refusal("table: a video that is not there", _table("path\nother.mp4\n"), "can't be read (No such file"),
    Refusal(
        "manifest: an id that is a path", _manifest("../a,v.mp4,0,4,4,9,9,25,1,1,x"), "can't be a file name"
    ),
    Refusal("manifest: a video out of the folder", _manifest(_refused_video("../v.mp4")), "may lie outside"),
    Refusal("manifest: a video from the root", _manifest(_refused_video("/v.mp4")), "may lie outside"),
    Refusal("crops: a box of NaN", _crops("a,nan,0,9,9,persons,x"), "invalid literal"),
    Refusal("crops: a box turned inside out", _crops("a,9,9,0,0,persons,x"), "is empty"),
    Refusal(
        "crops: older than the manifest", _older_crops, "lacks 1 of 2 clips, first 'b'; run 'harcache detect"
    ),
    Refusal(
        "poses brought along: of other ids than the clips",
        _matched("Wave-1", "Wave-2"),
        "has poses of 'Wave-1', 'Wave-2'; the clips are 'wave__1' (wave/1.mp4), 'wave__2' (wave/2.mp4)",
    ),
    Refusal(
        "poses brought along: not of all clips",
        _matched("wave/1"),
        "1 of 2 skipped that nobody asked to skip, more than 0.0%; first 'wave__2'",
    ),
    Refusal("boxes brought along: negative", _given("a,0,-4,0,9,9,1"), "row 1 (clip a, frame 0, x1 -4"),
    Refusal("boxes brought along: NaN", _given("a,0,nan,0,9,9,1"), "a value that is no number"),
    Refusal("boxes brought along: empty", _given("a,0,9,9,9,9,1"), "an empty box"),
    Refusal(
        "boxes brought along: unsorted frames",
        _given("a,1,0,0,9,9,1", "a,0,0,0,9,9,1"),
        "a frame before that of an earlier row",
    ),
    Refusal("boxes: NaN", _boxes(float("nan"), 0, 9, 9, 1), "is not finite"),
    Refusal("boxes: infinite", _boxes(0, 0, float("inf"), 9, 1), "is not finite"),
    Refusal(
        "boxes: four columns",
        lambda p: write_detections(p / "a.h5", {"a": [np.zeros((1, 4))]}),
        "expected (None, 5)",
    ),
    Refusal("boxes: a file of text", _hdf5(b"text" * 99), "cannot be read"),
    Refusal("boxes: a file cut short", _hdf5(b"\x89HDF\r\n\x1a\n" + bytes(99)), "cannot be read"),
    Refusal(
        "poses: a wrong number of joints' scores",
        lambda p: write_poses(p / "a.h5", {"a": (np.zeros((1, 4, 17, 2)), np.zeros((1, 4, 16)))}),
        "expected (1, 4, 17)",
    ),
    Refusal(
        "pickle: a call of os.system",
        _pickle([_Attack()]),
        "it names posix.system, which has no place in one and was not run",
    ),
    Refusal(
        "pickle: an array of a call",
        _pickle([_entry(keypoint=np.array([_Attack()], object))]),
        "it names posix.system, which has no place in one and was not run",
    ),
    Refusal("pickle: text", _pickle(b"not a pickle"), "is no pickle of arrays and plain containers"),
    Refusal("pickle: cut short", _pickle(pickle.dumps([_entry()])[:-99]), "it is cut off after"),
    Refusal(
        "pickle: keypoints of a wrong shape",
        _pickle([_entry(keypoint=np.ones((4, 17)))]),
        "expected (persons, frames, joints, 2 or 3)",
    ),
    Refusal(
        "pickle: keypoints of NaN",
        _pickle([_entry(keypoint=np.full((1, 4, 17, 2), np.nan))]),
        "keypoint holds NaN or infinite values",
    ),
]


def _labels(rows: str) -> Callable[[Path], object]:
    def attempt(folder: Path) -> None:
        workspace = _workspace(folder)
        for name, text in (("cross-subject.txt", _PKU_SPLIT), ("Label/0002-L.txt", rows)):
            (workspace.videos / name).parent.mkdir(parents=True, exist_ok=True)
            (workspace.videos / name).write_text(text)
        _index(workspace, IndexParams("pku_mmd"), "RGB_VIDEO/0002-L.avi")

    return attempt


_PKU_SPLIT = "Training videos:\n0002-L\nValidation videos:\n0004-R\n"
REPAIRS = [
    Repair(
        "table: a clip that goes on after the video",
        _table("path,start,end\ngood.mp4,1,99\n"),
        "was cut there",
    ),
    Repair("PKU-MMD labels: a start after the end", _labels("1,3,1,2\n"), "swapped"),
    Repair("PKU-MMD labels: an end after the video's", _labels("1,1,99,2\n"), "was cut there"),
]


_Files = dict[str, tuple[int, int]]
Built = tuple[Workspace, _Files, _Files]


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    """The corpus and two good clips after all stages, and what lay outside of the data before and after."""
    torch.set_num_threads(1)
    project = tmp_path_factory.mktemp("bad")
    videos = project / "videos" / "small"
    (videos / "a").mkdir(parents=True)
    (videos / "b").mkdir()
    (project / "elsewhere").mkdir()
    for path in (videos / "a" / "good.mp4", videos / "b" / "good.mp4", project / "elsewhere" / "good.mp4"):
        _write(path)
    for case in CASES:
        case.make(videos / case.path)
    before = _outside(project)
    workspace = Workspace.under(project, "small", project / "videos", max_failed=1.0)
    params = replace(PARAMS, name="small", index=FolderIndexParams("folder"))
    with Engine(workers=0) as engine:
        for stage in _STAGES.values():
            stage.run(params, workspace, engine)
    return workspace, before, _outside(project)


def _outside(project: Path) -> _Files:
    """Size and time of change of all that does not lie in the dataset's own data."""
    paths = [path for path in project.rglob("*") if path.relative_to(project).parts[0] != "data"]
    return {
        os.fsencode(path).decode(errors="backslashreplace"): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in paths
    }


@pytest.mark.slow  # two networks look at thirty clips
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_a_bad_video_ends_as_it_should(built: Built, case: Case) -> None:
    workspace = built[0]
    ends = {
        stage: {id: (status, why) for id, status, why in read_failures(workspace.failures(stage))}
        for stage in _STAGES
    }
    if case.status in ("ok", "not looked at"):
        assert not any(case.id in listed for listed in ends.values())
        indexed = case.id in {clip.id for clip in read_manifest(workspace.manifest)}
        assert indexed == (case.status == "ok")
    else:
        status, why = ends[case.stage][case.id]
        assert status == case.status and case.says in why


@pytest.mark.slow  # uses the same build
def test_bad_videos_stop_no_good_one_and_change_nothing_but_the_datasets_own_folder(built: Built) -> None:
    workspace, before, after = built
    good = {"a__good", "b__good", *(case.id for case in CASES if case.status == "ok")}
    bad = {case.id for case in CASES if case.stage == "detect"}
    assert {clip.id for clip in read_manifest(workspace.manifest)} == good | bad
    assert set(open_store(workspace.rgb).ids) == good
    assert before == after
    assert [path.name for path in workspace.data.parent.iterdir()] == ["small"]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.what)
def test_a_bad_table_or_array_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HarcacheError, match=re.escape(refusal.says)):
        refusal.attempt(tmp_path)
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize("repair", REPAIRS, ids=lambda repair: repair.what)
def test_a_bad_annotation_is_repaired_and_the_repair_is_recorded(tmp_path: Path, repair: Repair) -> None:
    workspace = _workspace(tmp_path)
    repair.attempt(tmp_path)
    [(_, status, why)] = read_failures(workspace.failures("index"))
    assert status == "repaired" and repair.says in why
    assert len(read_manifest(workspace.manifest)) == 1


_ENDS = {
    "ok": "built like any other",
    "not looked at": "not looked at",
    "skipped": "left out by `index`: `{says}`",
    "failed": "fails in `{stage}`: `{says}`",
}
_INTRODUCTION = """# What happens to bad inputs

Nothing of what lies in a dataset's folder is trusted. A bad video costs its own clips: they are listed with
the reason in `data/<dataset>/failures/<stage>.csv`, later stages skip them, and all others are built. A bad
table or array stops its command with a line that names the file. No input runs code, opens an address or
another file, or has anything written outside of the dataset's own folder. Damage in the middle of a video is
found when its frames are decoded, not by `index`. Links are followed, as datasets are often spread over
disks: what they lead to is read and never written.

These cases are tested; the words on the right are part of the message. `python -m tests.test_bad_inputs`
writes this page.

"""


def _document() -> str:
    """The page docs/bad-inputs.md."""
    videos = [(case.what, _ENDS[case.status].format(stage=case.stage, says=case.says)) for case in CASES]
    refusals = [(refusal.what, f"refused: `{refusal.says}`") for refusal in REFUSALS]
    repairs = [(repair.what, f"repaired and listed: `{repair.says}`") for repair in REPAIRS]
    parts = [_rows("a video", videos), _rows("a table or array", refusals + repairs)]
    return _INTRODUCTION + "\n".join(parts)


def _rows(head: str, rows: list[tuple[str, str]]) -> str:
    return "".join(f"| {what} | {end} |\n" for what, end in [(head, "its end"), ("---", "---"), *rows])


def test_the_document_lists_these_cases() -> None:
    assert _DOC.read_text() == _document()


if __name__ == "__main__":
    _DOC.write_text(_document())

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_classes, read_manifest
from harcache.pipeline.params import (
    CropParams,
    DatasetParams,
    DetectParams,
    FolderIndexParams,
    FramesParams,
    HeatmapParams,
    IndexParams,
    NtuIndexParams,
    PoseParams,
    RgbParams,
)
from harcache.pipeline.video import probes
from harcache.pipeline.video.writing import write_video
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import Counts, read_counts, read_failures
from harcache.stages import index
from harcache.stages.shared.workspace import Workspace

_REAL_VIDEOS = Path(__file__).parents[2].parent / "shared" / "videos"


_FOLDER = FolderIndexParams("folder")


def _params(index: IndexParams | FolderIndexParams | NtuIndexParams = _FOLDER) -> DatasetParams:
    return DatasetParams(
        "small",
        index,
        DetectParams("torchvision", "none", 64, 0.5, 0.5, 2, "float32"),
        PoseParams("mmpose", "none", "none", False, 2, "float32"),
        CropParams(min_score=0.3),
        FramesParams(None),
        HeatmapParams(shard_rows=64),
        RgbParams(shard_rows=64),
    )


def _index(
    params: DatasetParams, videos: Path, out: Path, threads: int | None = None, **options: Any
) -> Counts:
    workspace = Workspace("small", out, videos, out / "metrics.json", **options)
    with Engine(workers=0) as engine:
        return index.run(params, workspace, engine, threads=threads)


def _write(path: Path, frames: int, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, [np.full((32, 48, 3), grey + i, np.uint8) for i in range(frames)], fps=25)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    for number, name in enumerate(["run/a.mp4", "run/b.avi", "walk/a.mp4", "walk/b.mkv"]):
        _write(root / name, 5 + number, grey=10 * number)
    return root


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the videos that were opened since."""
    names: list[str] = []
    probe = probes.probe

    def listening(path: Path) -> object:
        names.append(path.name)
        return probe(path)

    monkeypatch.setattr(probes, "probe", listening)
    return names


def _contents(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_every_video_becomes_a_row_with_what_was_counted(videos: Path, tmp_path: Path) -> None:
    counts = _index(_params(), videos, tmp_path / "out")
    clips = read_manifest(tmp_path / "out" / "manifest.csv")
    assert counts == Counts(ok=4, skipped=0, failed=0)
    assert [(c.id, c.frames) for c in clips] == [("run__a", 5), ("run__b", 6), ("walk__a", 7), ("walk__b", 8)]
    assert {(c.height, c.width, c.fps) for c in clips} == {(32, 48, 25.0)}
    assert [c.size for c in clips] == [(videos / c.video).stat().st_size for c in clips]
    assert len({c.digest for c in clips}) == 4
    assert {c.split("default") for c in clips} == {"train", "test"}
    assert read_classes(tmp_path / "out" / "classes.csv") == {"default": ["run", "walk"]}
    assert read_failures(tmp_path / "out" / "failures" / "index.csv") == []
    assert read_counts(tmp_path / "out" / "counts" / "index.json") == counts


def test_the_real_videos_are_counted(tmp_path: Path) -> None:
    if not _REAL_VIDEOS.is_dir():
        pytest.skip(f"the sample videos are not here: {_REAL_VIDEOS} is missing")
    _index(_params(), _REAL_VIDEOS, tmp_path)
    found = {c.video: (c.frames, c.width, c.height) for c in read_manifest(tmp_path / "manifest.csv")}
    assert found == {
        "S001C001P001R001A001_rgb.avi": (103, 1920, 1080),
        "demo.mp4": (280, 340, 256),
        "part_0.mp4": (32, 340, 256),
        "test.avi": (164, 320, 240),
        "test.mp4": (300, 340, 256),
    }


def test_the_files_do_not_depend_on_the_number_of_workers(videos: Path, tmp_path: Path) -> None:
    _index(_params(), videos, tmp_path / "one", threads=1)
    _index(_params(), videos, tmp_path / "four", threads=4)
    assert _contents(tmp_path / "one") == _contents(tmp_path / "four")


def test_a_second_run_opens_no_video_and_touches_no_file(
    videos: Path, tmp_path: Path, probed: list[str]
) -> None:
    out = tmp_path / "out"
    _index(_params(), videos, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert len(probed) == 4
    probed.clear()
    _index(_params(), videos, out)
    assert probed == []
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


def test_only_changed_and_new_videos_are_opened(videos: Path, tmp_path: Path, probed: list[str]) -> None:
    out = tmp_path / "out"
    _index(_params(), videos, out)
    before = {c.id: c for c in read_manifest(out / "manifest.csv")}
    probed.clear()
    _write(videos / "walk" / "a.mp4", 9, grey=90)
    _write(videos / "walk" / "c.mp4", 3)
    (videos / "run" / "b.avi").unlink()
    _index(_params(replace(_FOLDER, test_ratio=0.0)), videos, out)
    after = {c.id: c for c in read_manifest(out / "manifest.csv")}
    assert sorted(probed) == ["a.mp4", "c.mp4"]
    assert {name: clip.frames for name, clip in after.items()} == {
        "run__a": 5, "walk__a": 9, "walk__b": 8, "walk__c": 3
    }  # fmt: skip
    assert after["walk__b"].fingerprint == before["walk__b"].fingerprint
    assert after["walk__a"].fingerprint != before["walk__a"].fingerprint


def test_an_interrupted_run_goes_on_where_it_was(
    videos: Path, tmp_path: Path, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    listening = probes.probe

    def interrupted(path: Path) -> object:
        if path.name == "b.mkv":
            raise RuntimeError("the power is gone")
        return listening(path)

    monkeypatch.setattr(probes, "probe", interrupted)
    with pytest.raises(RuntimeError, match="the power is gone"):
        _index(_params(), videos, out, threads=1)
    with (out / "probes.jsonl").open("a") as file:
        file.write('{"video":"walk/b.mkv","size":')
    probed.clear()
    monkeypatch.setattr(probes, "probe", listening)
    _index(_params(), videos, out)
    assert probed == ["b.mkv"]
    _index(_params(), videos, tmp_path / "whole")
    assert _contents(out) == _contents(tmp_path / "whole")


def _spoil(videos: Path) -> None:
    (videos / "run" / "text.mp4").write_text("no video\n" * 50)
    (videos / "run" / "zero.mp4").touch()
    whole = (videos / "walk" / "a.mp4").read_bytes()
    (videos / "walk" / "cut.mp4").write_bytes(whole[: len(whole) // 2])


def test_bad_videos_are_listed_and_stop_no_others(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _spoil(videos)
    message = r"index: 3 of 7 failed, more than 1\.0%; first run__text: run/text\.mp4 is no video.*index\.csv"
    with pytest.raises(HarcacheError, match=message):
        _index(_params(), videos, out)
    assert len(read_manifest(out / "manifest.csv")) == 4
    failures = {name: (status, why) for name, status, why in read_failures(out / "failures" / "index.csv")}
    assert list(failures) == ["run__text", "run__zero", "walk__cut"]
    assert {status for status, _ in failures.values()} == {"failed"}
    assert failures["run__zero"][1].startswith("run/zero.mp4 is empty (0 bytes)")
    assert read_counts(out / "counts" / "index.json") == Counts(4, 0, 3)


def test_failures_under_the_limit_are_no_error(videos: Path, tmp_path: Path) -> None:
    _spoil(videos)
    counts = _index(_params(), videos, tmp_path / "out", max_failed=0.5)
    assert counts == Counts(ok=4, skipped=0, failed=3)


def test_a_failed_video_is_opened_again_only_when_changed_or_asked(
    videos: Path, tmp_path: Path, probed: list[str]
) -> None:
    out = tmp_path / "out"
    _spoil(videos)
    _index(_params(), videos, out, max_failed=1)
    before = _contents(out)
    probed.clear()
    _index(_params(), videos, out, max_failed=1)
    assert (probed, _contents(out)) == ([], before)
    _index(_params(), videos, out, max_failed=1, retry_failed=True)
    assert (sorted(probed), _contents(out)) == (["cut.mp4", "text.mp4", "zero.mp4"], before)
    probed.clear()
    shutil.copy(videos / "run" / "a.mp4", videos / "run" / "zero.mp4")
    assert _index(_params(), videos, out, max_failed=1) == Counts(ok=5, skipped=0, failed=2)
    assert probed == ["zero.mp4"]


def test_a_video_that_is_only_in_the_table_fails_until_it_comes(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (videos / "clips.csv").write_text("path,label\nrun/a.mp4,run\nlate.mp4,run\n")
    params = _params(replace(_FOLDER, table="clips.csv"))
    with pytest.raises(HarcacheError, match=r"1 of 2 failed.*late\.mp4 can't be read \(No such file"):
        _index(params, videos, out)
    _write(videos / "late.mp4", 4)
    assert _index(params, videos, out) == Counts(ok=2, skipped=0, failed=0)


def test_videos_left_out_by_the_layout_count_as_skipped(tmp_path: Path) -> None:
    for name in ("S001C001P001R001A001_rgb.avi", "S001C002P003R001A060_rgb.avi", "holiday.mp4"):
        _write(tmp_path / "videos" / name, 4)
    out = tmp_path / "out"
    params = _params(NtuIndexParams("ntu60"))
    assert _index(params, tmp_path / "videos", out) == Counts(ok=2, skipped=1, failed=0)
    assert [row[:2] for row in read_failures(out / "failures" / "index.csv")] == [("holiday.mp4", "skipped")]
    first, second = read_manifest(out / "manifest.csv")
    assert (first.label("xsub"), first.split("xsub"), first.split("xview")) == (0, "train", "test")
    assert (second.label("xview"), second.split("xsub"), second.split("xview")) == (59, "test", "train")


def test_labels_and_splits_of_a_protocol_reach_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = (
        "Laydown_p03_r00_v07_c02",
        "Walk_p03_r00_v07_c01",
        "Walk_p19_r14_v04_c03",
        "Pour.Fromcup_p03_r00_v07_c01",
    )
    for name in names:
        _write(tmp_path / "videos" / f"{name}.mp4", 3)
    out = tmp_path / "out"
    params = _params(IndexParams("toyota_smarthome"))
    assert _index(params, tmp_path / "videos", out) == Counts(ok=3, skipped=1, failed=0)
    clips = {clip.id: clip for clip in read_manifest(out / "manifest.csv")}
    assert {name: (dict(clip.labels), dict(clip.splits)) for name, clip in clips.items()} == {
        names[0]: ({"cs": 14}, {"cs": "train"}),
        names[1]: ({"cs": 29, "cv1": 18, "cv2": 18}, {"cs": "train", "cv1": "train", "cv2": "train"}),
        names[2]: ({"cs": 29, "cv1": 18, "cv2": 18}, {"cs": "val", "cv2": "train"}),
    }
    classes = read_classes(out / "classes.csv")
    assert (classes["cs"][29], classes["cv1"][18], classes["cv2"][18]) == ("Walk", "Walk", "Walk")
    assert capsys.readouterr().out.splitlines() == [
        "index: 3 clips of 3 videos, 9 frames, 0.0001 hours",
        "index: cs: 31 classes, 2 train, 1 val, 0 test",
        "index: cv1: 19 classes, 1 train, 0 test, 2 in no split",
        "index: cv2: 19 classes, 2 train, 0 test, 1 in no split",
        f"index: 1 skipped (activity Pour.Fromcup is in no protocol): {names[3]}.mp4",
        "index: 3 ok, 1 skipped, 0 failed of 4 clips",
    ]


def test_a_touched_video_keeps_its_fingerprint(videos: Path, tmp_path: Path, probed: list[str]) -> None:
    out = tmp_path / "out"
    _index(_params(), videos, out)
    before = [c.fingerprint for c in read_manifest(out / "manifest.csv")]
    os.utime(videos / "run" / "a.mp4", ns=(1, 1))
    probed.clear()
    _index(_params(), videos, out)
    assert probed == ["a.mp4"]
    assert [c.fingerprint for c in read_manifest(out / "manifest.csv")] == before


def _lay_pku_mmd(root: Path) -> None:
    for name in ("0002-L", "0003-M", "0191-L"):
        _write(root / "RGB_VIDEO" / f"{name}.avi", 20)
    labels = {
        "0002-L": "1,0,9,2\n2,8,3,1\n3,10,20,2\n4,5,3000,2\n5,20,25,2\n",
        "0003-M": "6,19,19,2",
        "0191-L": "",
    }
    for name, rows in labels.items():
        path = root / "Label" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(rows)
    (root / "cross-view.txt").write_text(
        "Training videos: \n0003-M, \nValidataion videos: \n0002-L, 0191-L, \n"
    )


def test_clips_of_long_videos_are_checked_against_the_counted_frames(
    tmp_path: Path, probed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    _lay_pku_mmd(tmp_path / "videos")
    counts = _index(_params(IndexParams("pku_mmd")), tmp_path / "videos", out, max_failed=0.5)
    assert counts == Counts(ok=5, skipped=1, failed=1)
    # A video without clips is not opened; one with many is opened once.
    assert sorted(probed) == ["0002-L.avi", "0003-M.avi"]
    clips = read_manifest(out / "manifest.csv")
    assert {c.id: (c.start, c.end) for c in clips} == {
        "0002-L_F00000_A01": (0, 10),
        "0002-L_F00003_A02": (3, 9),
        "0002-L_F00005_A04": (5, 20),
        "0002-L_F00010_A03": (10, 20),
        "0003-M_F00019_A06": (19, 20),
    }
    assert len({c.fingerprint for c in clips}) == 5
    told = "it went on after frame 19, the video's last, and was cut there"
    assert read_failures(out / "failures" / "index.csv") == [
        ("0002-L_F00003_A02", "repaired", "start 8 and end 3 were swapped"),
        ("0002-L_F00005_A04", "repaired", told),
        ("0002-L_F00010_A03", "repaired", told),
        (
            "0002-L_F00020_A05",
            "failed",
            "the clip starts at frame 20, but RGB_VIDEO/0002-L.avi has 20 frames: mend its annotation",
        ),
        ("RGB_VIDEO/0191-L.avi", "skipped", "its label file Label/0191-L.txt is empty"),
    ]
    shown = capsys.readouterr().out.splitlines()
    one_sided = [line for line in shown if " alone, no " in line]
    assert [line.partition(" with ")[2].partition(":")[0] for line in one_sided] == [
        "train clips alone, no test", "test clips alone, no train"
    ]  # fmt: skip
    assert [line for line in shown[:5] if line not in one_sided] == [
        "index: 5 clips of 2 videos, 42 frames, 0.0005 hours",
        "index: xview: 51 classes, 1 train, 4 test",
        f"index: 2 repaired ({told}): 0002-L_F00005_A04, 0002-L_F00010_A03",
    ]
    assert shown[-1] == "index: 5 ok, 1 skipped, 1 failed of 7 clips"


def test_long_lists_are_shortened_on_the_screen_and_whole_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, videos = tmp_path / "out", tmp_path / "videos"
    _write(videos / "S001C001P001R001A001_rgb.avi", 4)
    for number in range(1, 13):
        (videos / f"holiday {number}.avi").touch()
        (videos / f"S001C001P001R{number:03}A061.avi").touch()
    for letter in "abcdefghijk":
        link = videos / letter / "S001C001P001R001A001_rgb.avi"
        link.parent.mkdir()
        link.touch()
    _index(_params(NtuIndexParams("ntu60")), videos, out)
    shown = capsys.readouterr().out
    assert (
        "index: 12 skipped (name is not like S001C001P001R001A001_rgb.avi): holiday 1.avi, holiday 10.avi, "
        "holiday 11.avi, holiday 12.avi, holiday 2.avi and 7 more\n"
    ) in shown
    assert len(read_failures(out / "failures" / "index.csv")) == 35

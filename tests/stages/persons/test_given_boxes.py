"""Boxes that another program found take the detector's place, once they are checked."""

import json
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harcache.cache.annotations import read_detections
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_manifest, write_manifest
from harcache.pipeline.params import DatasetParams, GivenBoxesParams
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import Counts, read_failures
from harcache.stages import detect
from harcache.stages.persons import given_boxes
from harcache.stages.persons.given_boxes import read_boxes
from harcache.stages.shared.units import part_file
from harcache.stages.shared.workspace import Workspace

_HEADER = "clip,frame,x1,y1,x2,y2,score\n"


def _boxes_of(workspace: Workspace) -> dict[str, list[np.ndarray]]:
    return {
        clip.id: read_detections(part_file(workspace.detections, 0), clip.id)
        for clip in read_manifest(workspace.manifest)
    }


def _csv(boxes: dict[str, list[np.ndarray]]) -> str:
    rows = [
        f"{clip},{frame},{','.join(str(float(value)) for value in box)}\n"
        for clip, frames in boxes.items()
        for frame, found in enumerate(frames)
        for box in found
    ]
    return _HEADER + "".join(rows)


def _run(params: DatasetParams, workspace: Workspace, source: Path) -> Counts:
    with Engine(workers=0) as engine:
        return detect.run(replace(params, detect=GivenBoxesParams("boxes", str(source))), workspace, engine)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_the_boxes_of_a_file_are_those_of_the_clips(
    own_demo: Workspace, params: DatasetParams, tmp_path: Path, kind: str
) -> None:
    boxes = _boxes_of(own_demo)
    source = tmp_path / f"boxes.{kind}"
    rows = [line.split(",") for line in _csv(boxes).split()]
    if kind == "csv":
        source.write_text(_csv(boxes))
    else:
        objects = [dict(zip(rows[0], [row[0], *map(float, row[1:])], strict=True)) for row in rows[1:]]
        source.write_text(json.dumps(objects))
    assert _run(params, own_demo, source) == Counts(len(boxes), 0, 0)
    for clip, found in _boxes_of(own_demo).items():
        for ours, theirs in zip(found, boxes[clip], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_boxes_may_call_a_clip_by_its_videos_path_without_suffix(
    own_demo: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    clips = [replace(clip, video=f"wave/{n}.mp4") for n, clip in enumerate(read_manifest(own_demo.manifest))]
    write_manifest(own_demo.manifest, clips)
    source = tmp_path / "boxes.csv"
    source.write_text(f"{_HEADER}wave/1,0,10,20,30,60,0.5\n")
    _run(params, own_demo, source)
    assert _boxes_of(own_demo)[clips[1].id][0].tolist() == [[10, 20, 30, 60, 0.5]]


def test_a_changed_clip_alone_changes_its_part_and_nobody_is_no_failure(
    own_demo: Workspace, params: DatasetParams, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "boxes.csv"
    source.write_text(_HEADER)
    assert _run(params, own_demo, source).ok == len(_boxes_of(own_demo))
    assert "has no boxes of 6 of 6 clips, first " in capsys.readouterr().err
    assert not any(map(len, np.concatenate(list(_boxes_of(own_demo).values()), axis=0)))
    part = part_file(own_demo.detections, 0)
    before = part.stat().st_mtime_ns
    _run(params, own_demo, source)
    assert part.stat().st_mtime_ns == before
    clip = read_manifest(own_demo.manifest)[0].id
    source.write_text(f"{_HEADER}{clip},3,10,20,30,60,0.5\n")
    _run(params, own_demo, source)
    assert _boxes_of(own_demo)[clip][3].tolist() == [[10, 20, 30, 60, 0.5]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [("99999,1,1,9,9,1", "go up to frame 99999"), ("2,1,1,9999,9,1", r"leaves the image, which has 320x240")],
)
def test_boxes_that_a_clip_has_no_place_for_fail_it_alone(
    own_demo: Workspace, params: DatasetParams, tmp_path: Path, row: str, reason: str
) -> None:
    clips = read_manifest(own_demo.manifest)
    source = tmp_path / "boxes.csv"
    source.write_text(f"{_HEADER}{clips[1].id},{row}\n")
    assert _run(params, own_demo, source) == Counts(len(clips) - 1, 0, 1)
    ((name, status, why),) = read_failures(own_demo.failures("detect"))
    assert (name, status) == (clips[1].id, "failed")
    assert re.search(reason, why)


def test_boxes_of_a_clip_that_is_not_there_are_an_error(
    own_demo: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    clip = read_manifest(own_demo.manifest)[0].id
    (tmp_path / "boxes.csv").write_text(f"{_HEADER}{clip}x,0,1,1,9,9,1\n")
    with pytest.raises(HarcacheError, match=rf"1 clips that the manifest lacks, first '{clip}x'.*{clip}"):
        _run(params, own_demo, tmp_path / "boxes.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,0,1,1,9,9,nan\n", r"row 1 \(clip a, .*score nan\) has a value that is no number"),
        ("a,0,1,1,9,9,1\na,1,,1,9,9,1\n", "row 2 .* has a value that is no number"),
        ("a,0,1,1,9,nine,1\n", "row 1 .* has a value that is no number"),
        ("a,0,1,1,9,inf,1\n", "row 1 .* has a value that is no number"),
        ("a,0,-1,1,9,9,1\n", "row 1 .* has a negative coordinate"),
        ("a,-1,1,1,9,9,1\n", "row 1 .* has a frame that is no whole number"),
        ("a,0.5,1,1,9,9,1\n", "row 1 .* has a frame that is no whole number"),
        ("a,0,9,1,9,9,1\n", "row 1 .* has an empty box"),
        ("a,0,1,1,9,9,1.5\n", "row 1 .* has a score outside 0 to 1"),
        ("a,3,1,1,9,9,1\nb,0,1,1,9,9,1\na,2,1,1,9,9,1\n", "row 3 .* has a frame before that of an earlier"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "boxes.csv").write_text(_HEADER + rows)
    with pytest.raises(HarcacheError, match=message):
        read_boxes(tmp_path / "boxes.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("boxes.csv", b"clip,frame,x1\n", "has no column 'y1'; expected clip,frame,x1,y1,x2,y2,score"),
        ("boxes.csv", b"", "is no table of boxes"),
        ("boxes.csv", b"\xff\xfe\x00,", "is no table of boxes"),
        ("boxes.json", b"{", "is no table of boxes"),
        ("boxes.json", b"3", "is no table of boxes"),
        ("boxes.json", b"[3]", "no table of boxes|no column"),
        ("boxes.json", b'[{"clip": "a", "frame": [1]}]', "has no column 'x1'"),
        ("none.csv", None, r"none.csv can't be read \(No such file"),
    ],
)
def test_a_file_that_is_no_table_of_boxes_is_an_error(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(HarcacheError, match=message):
        read_boxes(tmp_path / name)


@pytest.mark.parametrize("clip", ["", '"clip": null, ', '"clip": ["a"], '], ids=["none", "null", "list"])
def test_a_box_of_no_clip_is_named_and_not_dropped(tmp_path: Path, clip: str) -> None:
    box = '"frame": 0, "x1": 1, "y1": 1, "x2": 9, "y2": 9, "score": 1}'
    (tmp_path / "boxes.json").write_text(f'[{{"clip": "a", {box}, {{{clip}{box}]')
    with pytest.raises(HarcacheError, match=r"row 2 \(clip .*, frame 0, .* has no clip id; correct the file"):
        read_boxes(tmp_path / "boxes.json")


def test_a_clip_may_be_called_what_others_take_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text(f"{_HEADER}NA,0,1,1,9,9,1\n007,0,1,1,9,9,1\n")
    assert list(read_boxes(tmp_path / "boxes.csv")) == ["NA", "007"]


def test_clips_that_are_numbers_keep_their_zeros(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text(f"{_HEADER}3,0,1,1,9,9,1\n0003,0,1,1,9,9,1\n")
    assert list(read_boxes(tmp_path / "boxes.csv")) == ["3", "0003"]


def test_a_number_that_only_python_reads_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text(f"{_HEADER}a,1_0,1,1,9,9,1\n")
    with pytest.raises(HarcacheError, match=r"row 1 .*frame 1_0, .* has a value that is no number"):
        read_boxes(tmp_path / "boxes.csv")


@pytest.mark.parametrize("row", ["a,0,1,1,9,9", "a,0,1,1,9,9,1,0"])
def test_a_row_of_another_length_is_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "boxes.csv").write_text(f"{_HEADER}a,0,1,1,9,9,1\n{row}\n")
    with pytest.raises(HarcacheError, match=r"no table of boxes \(line 3 has [68] columns, the first line 7"):
        read_boxes(tmp_path / "boxes.csv")


def test_a_wrong_row_far_down_is_named_and_clips_may_be_interleaved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given_boxes, "_ROWS_AT_ONCE", 2)
    monkeypatch.setattr(given_boxes, "_TEXT_AT_ONCE", 17)
    rows = [f"{clip},{frame},{frame},1,99,9,1" for frame in range(5) for clip in "ba"]
    (tmp_path / "boxes.csv").write_text(_HEADER + "\n".join(rows))
    found = read_boxes(tmp_path / "boxes.csv")
    assert list(found) == ["b", "a"]
    assert all(boxes[:, :2].tolist() == [[frame, frame] for frame in range(5)] for boxes in found.values())
    (tmp_path / "boxes.csv").write_text(_HEADER + "\n".join([*rows, "b,9,9,9,9,9,1"]))
    with pytest.raises(HarcacheError, match=r"row 11 \(clip b, frame 9, .* has an empty box"):
        read_boxes(tmp_path / "boxes.csv")
    (tmp_path / "boxes.csv").write_text(_HEADER + "\n".join([*rows, "b,3,1,1,9,9,1", "a,2,1,1,9,9,1"]))
    with pytest.raises(HarcacheError, match=r"row 11 \(clip b, frame 3, .* has a frame before"):
        read_boxes(tmp_path / "boxes.csv")


@pytest.mark.parametrize(
    "form",
    [
        lambda text: text,
        lambda text: text.removesuffix("\n"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("a,", '"a",').replace("b b,", "b b,"),
        lambda text: text.replace("clip,", "clip,note,").replace("a,", "a,seen,").replace("b b,", "b b,,"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text.replace(",1,", ", 1 ,"),
    ],
    ids=["plain", "no end", "windows", "mark", "quoted", "column", "empty lines", "blanks"],
)
def test_boxes_are_the_same_however_a_table_is_written(tmp_path: Path, form: Callable[[str], str]) -> None:
    (tmp_path / "boxes.csv").write_bytes(
        form(f"{_HEADER}a,0,0.25,1,9,9,1\nb b,3,2,1,9.5,9,0.125\na,7,1,1,9,9,1\n").encode()
    )
    found = {clip: boxes.tolist() for clip, boxes in read_boxes(tmp_path / "boxes.csv").items()}
    assert found == {
        "a": [[0, 0.25, 1, 9, 9, 1], [7, 1, 1, 9, 9, 1]],
        "b b": [[3, 2, 1, 9.5, 9, 0.125]],
    }


def test_many_boxes_take_the_memory_of_their_numbers(tmp_path: Path) -> None:
    rows = 200_000
    (tmp_path / "boxes.csv").write_text(
        _HEADER + "".join(f"clip{row // 1000},{row % 1000},1,1,9,9,0.5\n" for row in range(rows))
    )
    tracemalloc.start()
    try:
        found = read_boxes(tmp_path / "boxes.csv")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(map(len, found.values())) == rows
    assert peak < 4 * rows * 6 * 8 + 60_000_000

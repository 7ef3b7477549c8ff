import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.clips import Clip, read_classes, read_manifest, write_classes, write_manifest

CLIP = Clip(
    id="S001C001P001R001A001",
    video="nturgb+d_rgb/S001C001P001R001A001_rgb.avi",
    start=0,
    end=103,
    height=1080,
    width=1920,
    fps=30.0,
    size=1_234_567,
    mtime_ns=1_700_000_000_123_456_789,
    digest="00112233445566778899aabbccddeeff",
    subject=1,
    camera=2,
    labels=(("xsub", 0), ("xview", 0)),
    splits=(("xsub", "train"), ("xview", "test")),
)
PLAIN = Clip("a", "a.mp4", 5, 9, 240, 320, 29.97, 10, 20, "ff")

_names = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\."), min_size=1)
_numbers = st.integers(0, 2**62)
_optional = st.none() | st.integers(0, 200)
_protocols = st.sampled_from(["xsub", "xview", "default"])
_clips = st.builds(
    Clip,
    id=_names,
    video=st.lists(_names, min_size=1, max_size=3).map("/".join),
    start=st.integers(0, 50),
    end=st.integers(51, 10_000),
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    fps=st.floats(0.1, 1000),
    size=_numbers,
    mtime_ns=_numbers,
    digest=st.just("ab"),
    subject=_optional,
    camera=_optional,
    setup=_optional,
    repetition=_optional,
    labels=st.dictionaries(_protocols, st.integers(0, 119)).map(lambda d: tuple(d.items())),
    splits=st.dictionaries(_protocols, st.sampled_from(["train", "val", "test"])).map(
        lambda d: tuple(d.items())
    ),
)


@given(clips=st.lists(_clips, max_size=5, unique_by=lambda clip: clip.id))
def test_a_manifest_gives_back_the_clips_that_were_written(
    clips: list[Clip], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("manifest") / "manifest.csv"
    write_manifest(path, clips)
    assert read_manifest(path) == clips


def test_a_manifest_is_written_only_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "demo" / "manifest.csv"
    assert write_manifest(path, [CLIP])
    os.utime(path, (1, 1))
    assert not write_manifest(path, [CLIP])
    assert path.stat().st_mtime == 1
    assert write_manifest(path, [CLIP, PLAIN])
    assert [p.name for p in path.parent.iterdir()] == ["manifest.csv"]


def test_a_clip_without_label_or_split_has_none() -> None:
    assert CLIP.label("xsub") == 0 and CLIP.split("xview") == "test"
    assert PLAIN.label("xsub") is None and PLAIN.split("xsub") is None
    assert PLAIN.frames == 4


def test_a_clip_fingerprint_is_of_its_pixels_alone() -> None:
    moved = dataclasses.replace(CLIP, id="x", video="y.avi", mtime_ns=0, labels=())
    assert moved.fingerprint == CLIP.fingerprint
    assert dataclasses.replace(CLIP, end=102).fingerprint != CLIP.fingerprint
    assert dataclasses.replace(CLIP, digest="ff").fingerprint != CLIP.fingerprint


def test_fingerprints_depend_on_values_not_on_key_order() -> None:
    assert fingerprint({"a": 1, "b": (2, 3)}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint(1, 2) != fingerprint(12)
    assert fingerprint("demo", 1) == "931391a3e563a713a757f997"


def test_a_fingerprint_of_nan_fails() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint(float("nan"))


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\nb", "a\0"])
def test_an_id_that_is_no_file_name_fails(name: str) -> None:
    with pytest.raises(HarcacheError, match="can't be a file name"):
        dataclasses.replace(PLAIN, id=name)


@pytest.mark.parametrize("video", ["", ".", "/etc/passwd", "../a.mp4", "a/../../b.mp4", "a\\b.mp4"])
def test_a_video_outside_its_folder_fails(video: str) -> None:
    with pytest.raises(HarcacheError, match="may lie outside the folder of videos"):
        dataclasses.replace(PLAIN, video=video)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": 9}, "expected 0 <= start < end"),
        ({"labels": (("x sub", 1),)}, "has a protocol 'x sub'"),
        ({"labels": (("xsub", -1),)}, "has label -1 in xsub"),
        ({"splits": (("xsub", "dev"),)}, "has split 'dev' in xsub: expected train, val, test"),
        (
            {"splits": (("xsub", "train"), ("xsub", "test"))},
            "several splits in xsub: expected one of train, test",
        ),
        ({"labels": (("xsub", 0), ("xsub", 1))}, "has several labels in xsub: expected one of 0, 1"),
    ],
)
def test_a_clip_that_contradicts_itself_fails(change: dict, message: str) -> None:
    with pytest.raises(HarcacheError, match=message):
        dataclasses.replace(PLAIN, **change)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a,a.mp4", "../a,a.mp4", "line 3: clip id '../a' can't be a file name"),
        ("a,a.mp4", "a,/a.mp4", "line 3: video '/a.mp4' may lie outside"),
        ("a,a.mp4", CLIP.id + ",a.mp4", "line 3: clip id .* is already on line 2"),
        (",29.97,", ",fast,", "line 3: fps is 'fast': expected a number"),
        (",5,9,4,", ",5,9,5,", "line 3: frames is 5: expected end - start, 4"),
        (",29.97,10,", ",29.97,", "line 3: wrong number of columns"),
        (
            ",mtime_ns,",
            ",mtime,",
            "line 1: no column 'mtime_ns': expected id,video,.*; run the index stage again",
        ),
    ],
)
def test_a_damaged_manifest_fails_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "manifest.csv"
    write_manifest(path, [CLIP, PLAIN])
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(HarcacheError, match=message):
        read_manifest(path)


@pytest.mark.parametrize(
    ("old", "new", "line"), [(b"a.mp4", b"a\xff.mp4", 2), (b"id,", b"\xff,", 1), (b"id,", b'"id"x,', 1)]
)
def test_a_manifest_that_is_no_csv_in_utf8_is_named(
    tmp_path: Path, old: bytes, new: bytes, line: int
) -> None:
    path = tmp_path / "manifest.csv"
    write_manifest(path, [PLAIN])
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(HarcacheError, match=rf"manifest\.csv, line {line}: "):
        read_manifest(path)


def test_a_missing_manifest_fails(tmp_path: Path) -> None:
    with pytest.raises(HarcacheError, match=r"manifest.csv is missing; run the index stage"):
        read_manifest(tmp_path / "manifest.csv")


def test_classes_come_back_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    classes = {"xsub": ["drink water", "eat meal, snack"], "default": ["ça va"]}
    assert write_classes(tmp_path / "classes.csv", classes)
    assert not write_classes(tmp_path / "classes.csv", classes)
    assert read_classes(tmp_path / "classes.csv") == classes


def test_a_gap_in_the_classes_fails(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("protocol,label,name\nxsub,0,a\nxsub,2,c\n")
    with pytest.raises(HarcacheError, match="line 3: label 2 of xsub: expected 1"):
        read_classes(tmp_path / "classes.csv")

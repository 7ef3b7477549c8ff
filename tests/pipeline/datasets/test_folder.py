import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip
from harcache.pipeline.datasets.folder import _ids_of
from harcache.pipeline.datasets.layout import VIDEO_SUFFIXES
from harcache.pipeline.datasets.registry import Scan, scan
from harcache.pipeline.params import FolderIndexParams


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def _table(root: Path, text: str, **params: object) -> Scan:
    (root / "clips.csv").write_text(text)
    return scan(root, FolderIndexParams("folder", table="clips.csv", **params))  # type: ignore[arg-type]


def _labels(found: Scan) -> dict[str, str | None]:
    names = found.classes.get("default", ())
    return {e.video: names[e.labels[0][1]] if e.labels else None for e in found.entries}


def _splits(found: Scan) -> dict[str, str | None]:
    return {e.id: dict(e.splits).get("default") for e in found.entries}


def test_the_first_folder_on_the_path_is_the_class(tmp_path: Path) -> None:
    _touch(
        tmp_path, "walk/a.mp4", "walk/day 2/b.AVI", "run/c.mkv", "loose.webm", "walk/notes.txt", ".x/d.mp4"
    )
    _touch(tmp_path, "walk/._a.mp4")
    found = scan(tmp_path, FolderIndexParams("folder"))
    assert found.classes == {"default": ("run", "walk")}
    assert _labels(found) == {
        "loose.webm": None,
        "run/c.mkv": "run",
        "walk/a.mp4": "walk",
        "walk/day 2/b.AVI": "walk",
    }
    assert [e.id for e in found.entries] == ["loose", "run__c", "walk__a", "walk__day_2__b"]
    assert _splits(found)["loose"] is None


def test_folders_called_as_splits_are_splits_with_folders_of_classes(tmp_path: Path) -> None:
    _touch(tmp_path, "Train/wave/a.mp4", "test/push/deep/b.mp4", "validation/wave/c.mp4", "loose.mp4")
    found = scan(tmp_path, FolderIndexParams("folder"))
    assert found.classes == {"default": ("push", "wave")}
    assert _labels(found) == {
        "Train/wave/a.mp4": "wave",
        "loose.mp4": None,
        "test/push/deep/b.mp4": "push",
        "validation/wave/c.mp4": "wave",
    }
    assert [*_splits(found).values()] == ["train", None, "test", "val"]


def test_a_folder_beside_those_of_splits_makes_classes_of_all(tmp_path: Path) -> None:
    _touch(tmp_path, "train/wave/a.mp4", "bus/b.mp4")
    assert scan(tmp_path, FolderIndexParams("folder")).classes == {"default": ("bus", "train")}


def test_splits_that_hold_no_folders_of_classes_are_an_error(tmp_path: Path) -> None:
    _touch(tmp_path, "train/a.mp4", "test/b.mp4")
    with pytest.raises(HarcacheError, match=r"test is called as a split is, and b\.mp4 lies in it: expected"):
        scan(tmp_path, FolderIndexParams("folder"))


def test_subjects_beside_folders_of_splits_are_an_error(tmp_path: Path) -> None:
    _touch(tmp_path, "train/wave/a.mp4", "test/wave/b.mp4")
    with pytest.raises(HarcacheError, match=r"has folders of splits, and params\.yaml has subjects"):
        scan(tmp_path, FolderIndexParams("folder", test_subjects=(1,)))


def test_a_folder_without_classes_has_clips_without_labels(tmp_path: Path) -> None:
    _touch(tmp_path, *(f"clip{suffix}{suffix}" for suffix in VIDEO_SUFFIXES))
    found = scan(tmp_path, FolderIndexParams("folder"))
    assert len(found.entries) == len(VIDEO_SUFFIXES)
    assert found.classes == {}
    assert set(_splits(found).values()) == {None}


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    _touch(tmp_path, "elsewhere/a.mp4", "videos/run/b.mp4")
    (tmp_path / "videos" / "walk").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "videos")
    found = scan(tmp_path / "videos", FolderIndexParams("folder"))
    assert _labels(found) == {"run/b.mp4": "run", "walk/a.mp4": "walk"}


def test_a_table_gives_labels_splits_and_subjects(tmp_path: Path) -> None:
    text = (
        "path, label, split, subject, note\nx/a.mp4, walk, train, 3, fine\n./b.mp4, run, val, ,\nc.mp4,,,4,\n"
    )
    found = _table(tmp_path, "\ufeff" + text)
    assert _labels(found) == {"x/a.mp4": "walk", "b.mp4": "run", "c.mp4": None}
    assert _splits(found) == {"b": "val", "c": None, "x__a": "train"}
    assert {e.id: e.subject for e in found.entries} == {"b": None, "c": 4, "x__a": 3}


def test_labels_that_are_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    found = _table(tmp_path, "path,label\na.mp4,10\nb.mp4,9\nc.mp4,0\n")
    assert found.classes == {"default": ("0", "9", "10")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.mp4,x\n", "line 1: no column 'path'.*Columns found: file, label"),
        ("", "line 1: no column 'path'.*Columns found: none"),
        ("path,label\na.mp4,x\na.mp4,y\n", "line 3: a.mp4 is listed twice"),
        ("path,label\n../a.mp4,x\n", "line 2: path '../a.mp4': expected a path under the folder"),
        ("path,label\n/a.mp4,x\n", "line 2: path '/a.mp4': expected a path under the folder"),
        ("path,label\na\0.mp4,x\n", "line 2: path 'a.*': expected a path under the folder"),
        ("path,label\n,x\n", "line 2: path '': expected a path under the folder"),
        ("path,label\na.mp4\n", "line 2: wrong number of columns"),
        ("path,label\na.mp4,x,y\n", "line 2: wrong number of columns"),
        ("path,label,split\na.mp4,x,trian\n", "line 2: split 'trian' is unknown. Did you mean 'train'"),
        ("path,label,subject\na.mp4,x,Ann\n", "line 2: subject 'Ann': expected a whole number"),
        ("path,label,start,end\na.mp4,x,-1,5\n", "line 2: start '-1': expected a whole number"),
        ("path,label,start,end\na.mp4,x,5,5\n", "line 2: start 5 and end 5: expected start < end"),
        ("path,start,end\na.mp4,1,5\na.mp4,1,5\n", "line 3: a.mp4 is listed twice: expected every clip once"),
    ],
)
def test_a_wrong_table_is_an_error_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(HarcacheError, match=message):
        _table(tmp_path, text)


@pytest.mark.parametrize("content", [b"path,label\na.mp4,\xff\n", bytes(range(256)) * 40])
def test_a_table_that_is_no_text_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clips.csv").write_bytes(content)
    with pytest.raises(HarcacheError, match=r"clips\.csv, line [12]: "):
        scan(tmp_path, FolderIndexParams("folder", table="clips.csv"))


def test_a_missing_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HarcacheError, match=r"clips\.csv is missing: expected a CSV table"):
        scan(tmp_path, FolderIndexParams("folder", table="clips.csv"))


@given(st.integers(0, 5), st.floats(0.05, 0.95), st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_every_class_has_its_share_in_the_test(
    tmp_path_factory: pytest.TempPathFactory, seed: int, ratio: float, sizes: list[int]
) -> None:
    rows = [f"{c}/{i}.mp4,class{c}" for c, size in enumerate(sizes) for i in range(size)]
    found = _table(
        tmp_path_factory.mktemp("t"), "path,label\n" + "\n".join(rows), test_ratio=ratio, seed=seed
    )
    for number, size in enumerate(sizes):
        test = sum(_splits(found)[f"{number}__{i}"] == "test" for i in range(size))
        assert abs(test - ratio * size) <= 1
        assert size == 1 or 0 < test < size


@given(st.integers(0, 20), st.floats(0.05, 0.95))
def test_a_subject_is_never_in_training_and_test(
    tmp_path_factory: pytest.TempPathFactory, seed: int, ratio: float
) -> None:
    rows = [f"{s}_{i}.mp4,class{i},{s}" for s in range(6) for i in range(4)]
    text = "path,label,subject\n" + "\n".join(rows)
    found = _table(tmp_path_factory.mktemp("t"), text, test_ratio=ratio, seed=seed)
    sides = {s: {_splits(found)[f"{s}_{i}"] for i in range(4)} for s in range(6)}
    assert all(len(side) == 1 for side in sides.values())
    assert {"train", "test"} == set.union(*sides.values())  # type: ignore[comparison-overlap]


_SMALL = st.integers(0, 5)


@given(
    st.lists(st.tuples(_SMALL, st.none() | _SMALL, st.none() | _SMALL, _SMALL), min_size=1, max_size=40),
    st.floats(0, 0.6),
    st.floats(0, 0.4),
    st.booleans(),
)
def test_no_group_subject_or_video_is_on_two_sides(
    tmp_path_factory: pytest.TempPathFactory,
    clips: list[tuple[int, int | None, int | None, int]],
    test_ratio: float,
    val_ratio: float,
    by_group: bool,
) -> None:
    rows = [f"v{video}.mp4,class{label},{i},{i + 1},{group if by_group and group is not None else ''},"
            f"{subject if not by_group and subject is not None else ''}"
            for i, (video, group, subject, label) in enumerate(clips)]  # fmt: skip
    text = "path,label,start,end,group,subject\n" + "\n".join(rows)
    found = _table(tmp_path_factory.mktemp("t"), text, test_ratio=test_ratio, val_ratio=val_ratio)
    assert len(found.entries) == len(clips)
    sides: dict[str, set[str | None]] = {}
    for entry in found.entries:
        video, group, subject, _ = clips[entry.start]
        known = group if by_group else subject
        name = f"video {video}" if known is None else f"group {known}"
        sides.setdefault(name, set()).add(dict(entry.splits).get("default"))
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) <= {"train", "val", "test"}


def test_videos_whose_paths_match_alike_stay_together(tmp_path: Path) -> None:
    names = [f"{c}/v_{c}_g{g:02}_c{i:02}.avi" for c in ("run", "walk") for g in range(1, 9) for i in range(3)]
    _touch(tmp_path, *names, "run/other.avi")
    params = FolderIndexParams("folder", test_ratio=0.25, val_ratio=0.125, group_pattern="_g[0-9]+_")
    splits = _splits(scan(tmp_path, params))
    sides = {g: {split for name, split in splits.items() if f"_g{g:02}_" in name} for g in range(1, 9)}
    assert sorted(side.pop() or "" for side in sides.values()) == ["test"] * 2 + ["train"] * 5 + ["val"]
    assert not any(sides.values())


def test_a_pattern_that_is_none_is_an_error(tmp_path: Path) -> None:
    _touch(tmp_path, "run/a.mp4")
    with pytest.raises(HarcacheError, match=r"group_pattern '_g\(' is no regular expression"):
        scan(tmp_path, FolderIndexParams("folder", group_pattern="_g("))


def test_subjects_may_be_named_for_the_test(tmp_path: Path) -> None:
    rows = [f"{s}_{i}.mp4,class{i},{s}" for s in range(1, 6) for i in range(2)]
    text = "path,label,subject\n" + "\n".join([*rows, "none.mp4,,"])
    found = _table(tmp_path, text, test_subjects=(2, 5), val_subjects=(1,))
    sides = {e.id: dict(e.splits).get("default") for e in found.entries}
    assert sides.pop("none") is None
    wanted = {1: "val", 2: "test", 3: "train", 4: "train", 5: "test"}
    assert sides == {f"{s}_{i}": wanted[s] for s in range(1, 6) for i in range(2)}


@pytest.mark.parametrize(
    ("text", "params", "message"),
    [
        (
            "path,label,subject\na.mp4,x,1\nb.mp4,x,",
            {"test_subjects": (1,)},
            "some clips with a label have no",
        ),
        ("path,label,subject\na.mp4,x,1", {"val_subjects": (1, 7)}, r"no clip has the subjects \[7\]"),
        (
            "path,label,subject\na.mp4,x,1",
            {"test_subjects": (1,), "val_subjects": (1,)},
            r"subjects \[1\] are in both",
        ),
        ("path,label,split\na.mp4,x,test", {"test_subjects": (1,)}, r"has a column 'split', and params.yaml"),
        ("path,label\na.mp4,x", {"test_ratio": 0.7, "val_ratio": 0.6}, "expected a sum of 1 at most"),
    ],
)
def test_parameters_that_do_not_fit_the_table_are_an_error(
    tmp_path: Path, text: str, params: dict[str, object], message: str
) -> None:
    with pytest.raises(HarcacheError, match=message):
        _table(tmp_path, text, **params)


def test_a_long_video_may_hold_many_clips(tmp_path: Path) -> None:
    found = _table(tmp_path, "path,label,start,end\na.mp4,x,0,30\na.mp4,y,30,\nb.mp4,x,,\nc.mp4,x,0,\n")
    assert {e.id: (e.video, e.start, e.end) for e in found.entries} == {
        "a_F00000-00030": ("a.mp4", 0, 30),
        "a_F00030-end": ("a.mp4", 30, None),
        "b": ("b.mp4", 0, None),
        "c": ("c.mp4", 0, None),
    }


def test_the_split_follows_the_seed_alone(tmp_path: Path) -> None:
    rows = [f"{i}.mp4,walk" for i in range(40)]
    first = _splits(_table(tmp_path, "path,label\n" + "\n".join(rows)))
    again = _splits(_table(tmp_path, "path,label\n" + "\n".join(reversed(rows))))
    other = _splits(_table(tmp_path, "path,label\n" + "\n".join(rows), seed=1))
    assert first == again != other


@given(
    st.lists(st.text(st.characters(exclude_characters="/\\\0,\n\r", exclude_categories=["Cs"]), min_size=1))
)
def test_every_path_gives_an_id_that_a_clip_may_have(parts: list[str]) -> None:
    video = PurePosixPath(*[part for part in parts if part not in (".", "..")], "a.mp4").as_posix()
    (name,) = _ids_of([video]).values()
    Clip(name, video, 0, 1, 1, 1, 1.0, 1, 1, "0" * 32)


def test_videos_that_differ_in_their_suffix_alone_are_both_kept(tmp_path: Path) -> None:
    _touch(tmp_path, "run/a.mp4", "run/a.avi", "run/b.mp4")
    found = scan(tmp_path, FolderIndexParams("folder"))
    assert [e.id for e in found.entries] == ["run__a.avi", "run__a.mp4", "run__b"]


def test_two_videos_of_one_id_are_not_mixed_up(tmp_path: Path) -> None:
    _touch(tmp_path, "run/a.mp4", "run__a.mp4")
    found = scan(tmp_path, FolderIndexParams("folder"))
    assert [e.video for e in found.entries] == ["run/a.mp4"]
    assert found.left_out == (("run__a.mp4", "has the id run__a of run/a.mp4; rename one of them"),)


def test_a_name_that_is_not_utf8_is_left_out(tmp_path: Path) -> None:
    _touch(tmp_path, "run/a.mp4")
    _touch(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")), "b.mp4")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/run/caf\xe9.mp4")).touch()
    found = scan(tmp_path, FolderIndexParams("folder"))
    assert [e.video for e in found.entries] == ["run/a.mp4"]
    assert found.classes == {"default": ("run",)}
    why = "file name is not UTF-8; rename it"
    assert found.left_out == (("caf\\udce9/b.mp4", why), ("run/caf\\udce9.mp4", why))


def test_an_empty_or_missing_folder_is_an_error(tmp_path: Path) -> None:
    _touch(tmp_path, "notes.txt")
    with pytest.raises(HarcacheError, match="has no videos for the layout 'folder'"):
        scan(tmp_path, FolderIndexParams("folder"))
    with pytest.raises(HarcacheError, match="nowhere is not a folder: put the dataset's videos there"):
        scan(tmp_path / "nowhere", FolderIndexParams("folder"))

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.datasets.ntu import CLASSES, TRAIN_PERFORMERS, parse_ntu_name
from harcache.pipeline.datasets.registry import Scan, scan
from harcache.pipeline.params import NtuIndexParams


def _scan(root: Path, layout: str, *names: str) -> Scan:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return scan(root, NtuIndexParams(layout))


@given(*[st.integers(1, 999)] * 5, st.sampled_from(["", "_rgb"]))
def test_every_name_gives_back_its_numbers(s: int, c: int, p: int, r: int, a: int, end: str) -> None:
    assert parse_ntu_name(f"S{s:03}C{c:03}P{p:03}R{r:03}A{a:03}{end}") == (s, c, p, r, a)


@pytest.mark.parametrize(
    "stem",
    ["S001C001P001R001A000", "S001C001P001R001A001_depth", "s001c001p001r001a001", "S1C1P1R1A1", "holiday"],
)
def test_another_name_is_not_taken_for_one(stem: str) -> None:
    assert parse_ntu_name(stem) is None


def test_a_name_tells_all_about_a_clip_of_ntu60(tmp_path: Path) -> None:
    (entry,) = _scan(tmp_path, "ntu60", "nturgb+d_rgb/S017C002P003R002A060_rgb.avi").entries
    assert (entry.id, entry.video) == ("S017C002P003R002A060", "nturgb+d_rgb/S017C002P003R002A060_rgb.avi")
    assert (entry.setup, entry.camera, entry.subject, entry.repetition) == (17, 2, 3, 2)
    assert (entry.start, entry.end) == (0, None)
    assert dict(entry.labels) == {"xsub": 59, "xview": 59}
    assert dict(entry.splits) == {"xsub": "test", "xview": "train"}


@pytest.mark.parametrize(("camera", "split"), [(1, "test"), (2, "train"), (3, "train")])
def test_the_first_camera_is_the_test_of_the_cross_view_protocol(
    tmp_path: Path, camera: int, split: str
) -> None:
    (entry,) = _scan(tmp_path, "ntu60", f"S001C00{camera}P001R001A001_rgb.avi").entries
    assert dict(entry.splits) == {"xsub": "train", "xview": split}


@pytest.mark.parametrize(("setup", "split"), [(1, "test"), (18, "train"), (32, "train"), (31, "test")])
def test_even_setups_train_in_the_cross_setup_protocol(tmp_path: Path, setup: int, split: str) -> None:
    (entry,) = _scan(tmp_path, "ntu120", f"S{setup:03}C001P103R001A120_rgb.avi").entries
    assert dict(entry.labels) == {"xsub": 119, "xset": 119}
    assert dict(entry.splits) == {"xsub": "train", "xset": split}


# Shahroudy et al. 2016 and Liu et al. 2019, copied a second time: a slip in one of the copies is seen.
_X_SUB_60 = "1 2 4 5 8 9 13 14 15 16 17 18 19 25 27 28 31 34 35 38"
_X_SUB_120 = f"""{_X_SUB_60} 45 46 47 49 50 52 53 54 55 56 57 58 59 70 74 78 80 81 82 83 84 85 86 89 91 92 93
94 95 97 98 100 103"""


@pytest.mark.parametrize(
    ("layout", "last", "setups", "train"), [("ntu60", 40, 17, _X_SUB_60), ("ntu120", 106, 32, _X_SUB_120)]
)
def test_every_performer_camera_and_setup_is_on_its_side(
    tmp_path: Path, layout: str, last: int, setups: int, train: str
) -> None:
    takes = product(range(1, setups + 1), range(1, 4), range(1, last + 1))
    names = [f"S{s:03}C{c:03}P{p:03}R001A001_rgb.avi" for s, c, p in takes if p % setups == s - 1 or p == 1]
    found = _scan(tmp_path, layout, *names)
    assert len(found.entries) == len(names)
    trains = {int(performer) for performer in train.split()}
    for entry in found.entries:
        assert entry.setup and entry.camera
        view = entry.camera != 1 if layout == "ntu60" else entry.setup % 2 == 0
        wanted = {"xsub": entry.subject in trains, "xview" if layout == "ntu60" else "xset": view}
        assert dict(entry.splits) == {name: "train" if side else "test" for name, side in wanted.items()}


def test_samples_with_missing_skeletons_are_left_out_where_a_list_is_given(tmp_path: Path) -> None:
    names = ("S001C002P005R002A008_rgb.avi", "S001C001P001R001A001_rgb.avi", "S001C001P001R001A002.avi")
    (tmp_path / "list.txt").write_text(
        'of the captured samples in "NTU RGB+D"\n\nS001C002P005R002A008\r\nS001C001P001R001A002\n'
    )
    assert len(_scan(tmp_path, "ntu60", *names).entries) == 3
    found = scan(tmp_path, NtuIndexParams("ntu60", missing_skeletons="list.txt"))
    assert [entry.id for entry in found.entries] == ["S001C001P001R001A001"]
    why = "is in the list of missing skeletons"
    assert found.left_out == ((names[2], why), (names[0], why))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"list\.txt can't be read .*expected the list of samples with missing skeletons"),
        ("S1 C2", r"list\.txt names no sample: expected names like S001C002P005R002A008"),
    ],
)
def test_a_missing_or_empty_list_is_an_error(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    with pytest.raises(HarcacheError, match=message):
        scan(tmp_path, NtuIndexParams("ntu60", missing_skeletons="list.txt"))


def test_half_of_the_performers_train_in_both_datasets() -> None:
    assert (len(TRAIN_PERFORMERS[60]), len(TRAIN_PERFORMERS[120])) == (20, 53)
    assert max(TRAIN_PERFORMERS[60]) <= 40
    assert max(TRAIN_PERFORMERS[120]) <= 106


def test_every_action_has_a_name_of_its_own(tmp_path: Path) -> None:
    assert len(set(CLASSES)) == len(CLASSES) == 120
    assert (CLASSES[0], CLASSES[42], CLASSES[59]) == ("drink water", "falling down", "walking apart")
    assert (CLASSES[60], CLASSES[119]) == ("put on headphone", "rock-paper-scissors")
    classes = _scan(tmp_path, "ntu60", "S001C001P001R001A001_rgb.avi").classes
    assert classes == {"xsub": CLASSES[:60], "xview": CLASSES[:60]}


def test_videos_that_are_not_of_the_dataset_are_left_out_and_named(tmp_path: Path) -> None:
    names = ("S001C001P001R001A001_rgb.avi", "S018C001P001R001A001_rgb.avi", "S001C001P001R001A061_rgb.avi")
    found = _scan(tmp_path, "ntu60", *names, "holiday.mp4", "copy/S001C001P001R001A001_rgb.avi", "notes.txt")
    assert [entry.id for entry in found.entries] == ["S001C001P001R001A001"]
    reasons = dict(found.left_out)
    assert set(reasons) == {*names[1:], "holiday.mp4", "copy/S001C001P001R001A001_rgb.avi"}
    assert reasons["holiday.mp4"] == "name is not like S001C001P001R001A001_rgb.avi"
    assert reasons[names[1]] == "setup 18, action 1 is not in NTU RGB+D 60"
    double = reasons["copy/S001C001P001R001A001_rgb.avi"]
    assert double == f"has the id S001C001P001R001A001 of {names[0]}; rename one of them"


def test_entries_do_not_depend_on_the_order_of_the_files(tmp_path: Path) -> None:
    names = [f"S00{s}C001P00{p}R001A001_rgb.avi" for s in (2, 1) for p in (3, 1, 2)]
    ids = [entry.id for entry in _scan(tmp_path, "ntu120", *names).entries]
    assert ids == sorted(ids)
    assert len(ids) == 6


def test_a_folder_without_ntu_names_is_an_error_that_shows_one(tmp_path: Path) -> None:
    with pytest.raises(
        HarcacheError, match=r"no videos for the layout 'ntu60' \(1 left out, first: a\.mp4 name"
    ):
        _scan(tmp_path, "ntu60", "a.mp4")

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.datasets.pku_mmd import CLASSES
from harcache.pipeline.datasets.registry import Entry, Scan, scan
from harcache.pipeline.params import IndexParams

_SPLIT = "Training videos: \n0002-L, 0003-M, \nValidataion videos: \n0004-R, \n"


def _lay(root: Path, files: dict[str, str]) -> Scan:
    """Write texts, with empty files for videos, and a cross-subject split where none is given."""
    for name, text in {"Split/cross-subject.txt": _SPLIT, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return scan(root, IndexParams("pku_mmd"))


def _one(root: Path, rows: str) -> Scan:
    return _lay(root, {"RGB_VIDEO/0002-L.avi": "", "Label/0002-L.txt": rows})


def _ranges(found: Scan) -> dict[str, tuple[int, int | None]]:
    return {entry.id: (entry.start, entry.end) for entry in found.entries}


def test_every_row_is_a_clip_of_the_video(tmp_path: Path) -> None:
    found = _one(tmp_path, "1,0,10,2\n51,40,60,1\n\n 7 , 12345 , 12345 , 2 \r\n")
    assert _ranges(found) == {
        "0002-L_F00000_A01": (0, 11),
        "0002-L_F00040_A51": (40, 61),
        "0002-L_F12345_A07": (12345, 12346),
    }
    assert {(e.video, e.camera) for e in found.entries} == {("RGB_VIDEO/0002-L.avi", 1)}
    assert [dict(e.labels) for e in found.entries] == [{"xsub": 0}, {"xsub": 50}, {"xsub": 6}]
    assert found.classes == {"xsub": CLASSES}
    assert found.left_out == ()


@given(
    st.dictionaries(
        st.tuples(st.integers(1, 51), st.integers(0, 9999)), st.integers(0, 9999), min_size=1, max_size=20
    )
)
def test_every_row_is_kept_whole_or_swapped_and_says_so(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[tuple[int, int], int]
) -> None:
    text = "".join(f"{action},{start},{end},2\n" for (action, start), end in rows.items())
    found = _one(tmp_path_factory.mktemp("t"), text)
    # Two rows may be the same action from the same frame once they are swapped.
    assert len(found.entries) + len(found.left_out) == len(rows)
    wanted = {(a - 1, min(s, e), max(s, e) + 1): s > e for (a, s), e in rows.items()}
    for entry in found.entries:
        assert entry.end is not None
        key = (dict(entry.labels)["xsub"], entry.start, entry.end)
        assert key in wanted
        assert entry.repair in ("", f"start {entry.end - 1} and end {entry.start} were swapped")


def test_swapped_rows_are_repaired_and_say_so(tmp_path: Path) -> None:
    found = _one(tmp_path, "5,40,30,1\n6,30,40,1\n")
    assert _ranges(found) == {"0002-L_F00030_A05": (30, 41), "0002-L_F00030_A06": (30, 41)}
    assert [entry.repair for entry in found.entries] == ["start 40 and end 30 were swapped", ""]


def test_empty_label_files_are_named(tmp_path: Path) -> None:
    found = _lay(
        tmp_path,
        {
            "0002-L.avi": "",
            "0003-M.avi": "",
            "0004-R.avi": "",
            "label/0002-L.txt": "1,0,1,2",
            "label/0003-M.txt": "",
            "label/0004-R.label": " \n\n",
        },
    )
    assert [entry.video for entry in found.entries] == ["0002-L.avi"]
    assert found.left_out == (
        ("0003-M.avi", "its label file label/0003-M.txt is empty"),
        ("0004-R.avi", "its label file label/0004-R.label is empty"),
    )


@pytest.mark.parametrize(
    "row",
    [
        "1,0,10",
        "1,0,10,2,5",
        "0,0,10,2",
        "52,0,10,2",
        "1,-4,10,2",
        "1,0,1e1,2",
        "1;0;10;2",
        "clapping,0,10,2",
        "1,0,99999999999999999999,2",
        "\x00",
    ],
)
def test_an_unreadable_row_is_an_error_with_file_and_line(tmp_path: Path, row: str) -> None:
    with pytest.raises(
        HarcacheError, match=r"Label/0002-L\.txt, line 3: .*expected label,start,end,confidence"
    ):
        _one(tmp_path, f"1,0,10,2\n\n{row}\n")


def test_a_label_file_that_is_no_text_is_an_error_with_its_line(tmp_path: Path) -> None:
    _one(tmp_path, "1,0,10,2\n")
    (tmp_path / "Label" / "0002-L.txt").write_bytes(b"1,0,10,2\n\xff\xfe\n")
    with pytest.raises(HarcacheError, match=r"Label/0002-L\.txt, line 2: is no text"):
        scan(tmp_path, IndexParams("pku_mmd"))


def test_a_row_that_repeats_another_is_left_out_and_named(tmp_path: Path) -> None:
    found = _one(tmp_path, "1,0,10,2\n2,0,10,2\n1,0,12,2\n")
    assert _ranges(found) == {"0002-L_F00000_A01": (0, 11), "0002-L_F00000_A02": (0, 11)}
    why = "has the action and the first frame of line 1"
    assert found.left_out == (("Label/0002-L.txt, line 3", why),)


def _sides(entries: tuple[Entry, ...]) -> dict[str, dict[str, str]]:
    return {entry.video[:6]: dict(entry.splits) for entry in entries}


def test_the_shipped_split_files_decide(tmp_path: Path) -> None:
    files = {f"{stem}{end}": text for stem in ("0002-L", "0003-M", "0004-R", "0005-L")
             for end, text in ((".avi", ""), (".txt", "3,1,9,2"))}  # fmt: skip
    view = "Training videos: 0003-M,0004-R\r\nValidation videos:\r\n0002-L\r\n"
    found = _lay(tmp_path, files | {"cross_view.txt": view})
    assert _sides(found.entries) == {
        "0002-L": {"xsub": "train", "xview": "test"},
        "0003-M": {"xsub": "train", "xview": "train"},
        "0004-R": {"xsub": "test", "xview": "train"},
        "0005-L": {},
    }
    assert {entry.camera for entry in found.entries} == {1, 2, 3}
    assert found.classes == {"xsub": CLASSES, "xview": CLASSES}
    assert all(dict(entry.labels) == {"xsub": 2, "xview": 2} for entry in found.entries)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0002-L, 0003-M", r"line 1: '0002-L': expected 'Training videos:'"),
        ("Training videos:\n0002-L 0003-M,", r"line 2: '0002-L 0003-M': expected"),
        ("Training videos:\n0002-L,\nValidataion videos:\n0002-L,", r"line 4: 0002-L is in both lists"),
    ],
)
def test_a_wrong_split_file_is_an_error_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(HarcacheError, match=rf"Split/cross-subject\.txt, {message}"):
        _lay(tmp_path, {"Split/cross-subject.txt": text})


def test_without_a_split_file_it_says_which_to_lay_there(tmp_path: Path) -> None:
    (tmp_path / "0002-L.avi").touch()
    with pytest.raises(HarcacheError, match=r"no split file: lay PKU-MMD's cross-subject\.txt or cross-view"):
        scan(tmp_path, IndexParams("pku_mmd"))


def test_two_split_files_of_a_protocol_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(HarcacheError, match=r"Split/cross-subject\.txt and a/cross_subject\.txt are both"):
        _lay(tmp_path, {"a/cross_subject.txt": _SPLIT})


def test_skeletons_and_other_sensors_are_not_taken_for_labels_and_videos(tmp_path: Path) -> None:
    found = _lay(
        tmp_path,
        {
            "RGB_VIDEO/0002-L.avi": "",
            "DEPTH_VIDEO/0002-L.avi": "",
            "IR_VIDEO/0002-L.avi": "",
            "copy/0002-L.avi": "",
            "0002-L-depth.avi": "",
            "PKU_Skeleton/0002-L.txt": "0.1 0.2 0.3",
            "Train_Label_PKU_final/0002-L.txt": "1,0,10,2",
            "Train_Label_PKU_final/0003-M.txt": "1,0,10,2",
            "RGB_VIDEO/0004-R.avi": "",
        },
    )
    assert _ranges(found) == {"0002-L_F00000_A01": (0, 11)}
    assert found.left_out == (
        ("0002-L-depth.avi", "name is not like 0002-L.avi"),
        ("DEPTH_VIDEO/0002-L.avi", "lies in a folder of depth or infrared videos"),
        ("IR_VIDEO/0002-L.avi", "lies in a folder of depth or infrared videos"),
        ("RGB_VIDEO/0004-R.avi", "has no label file 0004-R.txt"),
        ("Train_Label_PKU_final/0003-M.txt", "has no video"),
        ("copy/0002-L.avi", "has the name of RGB_VIDEO/0002-L.avi; remove one of them"),
    )


def test_two_label_files_of_one_video_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(HarcacheError, match=r"label/0002-L\.label and label/0002-L\.txt may both be"):
        _lay(tmp_path, {"0002-L.avi": "", "label/0002-L.txt": "1,0,1,2", "label/0002-L.label": "1,0,1,2"})


def test_every_action_has_a_name_of_its_own() -> None:
    assert len(set(CLASSES)) == len(CLASSES) == 51
    assert (CLASSES[0], CLASSES[11], CLASSES[25], CLASSES[50]) == (
        "bow", "giving object", "punch or slap", "writing"
    )  # fmt: skip

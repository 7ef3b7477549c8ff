"""Toyota Smarthome's names: labels and sides of each protocol, and the lists released with EPAM-Net."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache.pipeline.datasets.registry import Scan, scan
from harcache.pipeline.datasets.toyota_smarthome import CLASSES, _entry_of
from harcache.pipeline.params import IndexParams

_LISTS = Path(__file__).parents[3].parent / "shared" / "facts" / "toyota_smarthome"
_SUBJECTS = {
    "train": {3, 4, 6, 7, 9, 12, 13, 15, 17},
    "val": {19, 25},
    "test": {2, 10, 11, 14, 16, 18, 20},
}
_CAMERAS = {"train": {1, 3, 4, 6, 7}, "val": {5}, "test": {2}}


def _scan(root: Path, *names: str) -> Scan:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return scan(root, IndexParams("toyota_smarthome"))


def _side(sides: dict[str, set[int]], number: int) -> str | None:
    return next((side for side, numbers in sides.items() if number in numbers), None)


@given(
    st.sampled_from(CLASSES["cs"]),
    st.integers(0, 30),
    st.integers(0, 99),
    st.integers(0, 99),
    st.integers(0, 9),
)
def test_a_name_tells_labels_and_sides(
    activity: str, subject: int, take: int, video: int, camera: int
) -> None:
    name = f"{activity}_p{subject:02}_r{take:02}_v{video:02}_c{camera:02}"
    entry = _entry_of(f"mp4/{name}.mp4")
    assert not isinstance(entry, str)
    assert (entry.id, entry.subject, entry.repetition, entry.camera) == (name, subject, take, camera)
    labels, splits = dict(entry.labels), dict(entry.splits)
    assert labels["cs"] == CLASSES["cs"].index(activity)
    assert splits.get("cs") == _side(_SUBJECTS, subject)
    if activity not in CLASSES["cv2"]:
        assert set(labels) == {"cs"} >= set(splits)
        return
    assert labels["cv1"] == labels["cv2"] == CLASSES["cv2"].index(activity)
    assert splits.get("cv2") == _side(_CAMERAS, camera)
    assert splits.get("cv1") == (None if camera in {3, 4, 6, 7} else _side(_CAMERAS, camera))


def test_the_protocols_number_their_classes_apart(tmp_path: Path) -> None:
    found = _scan(tmp_path, "Walk_p03_r00_v07_c01.mp4")
    assert {protocol: len(names) for protocol, names in found.classes.items()} == {
        "cs": 31,
        "cv1": 19,
        "cv2": 19,
    }
    assert found.classes["cv1"] == found.classes["cv2"]
    assert all(len(set(names)) == len(names) for names in found.classes.values())
    assert dict(found.entries[0].labels) == {"cs": 29, "cv1": 18, "cv2": 18}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Pour.Fromcup_p03_r00_v07_c01.mp4", "activity Pour.Fromcup is in no protocol"),
        ("walk_p03_r00_v07_c01.mp4", "activity walk is in no protocol"),
        ("P02T01C03.mp4", "name is not like Cook.Cleandishes_p02_r00_v02_c03.mp4"),
        ("Walk_p3_r0_v7_c1.mp4", "name is not like Cook.Cleandishes_p02_r00_v02_c03.mp4"),
        ("Walk_p\u0660\u0663_r00_v07_c01.mp4", "name is not like Cook.Cleandishes_p02_r00_v02_c03.mp4"),
    ],
)
def test_what_is_in_no_protocol_is_left_out_and_named(tmp_path: Path, name: str, why: str) -> None:
    found = _scan(tmp_path, name, "Walk_p03_r00_v07_c01.mp4")
    assert [entry.id for entry in found.entries] == ["Walk_p03_r00_v07_c01"]
    assert found.left_out == ((name, why),)


def _listed(protocol: str) -> dict[str, tuple[str, int]]:
    """Read {clip id: (split, label)} of the released lists of a protocol."""
    found = {}
    for split, file in (("train", "train"), ("val", "validation"), ("test", "test")):
        for line in (_LISTS / f"{file}_{protocol}.txt").read_text().splitlines():
            name, label = line.split()
            found[name.removesuffix(".mp4")] = split, int(label)
    return found


def test_the_released_lists_are_met_line_by_line(tmp_path: Path) -> None:
    if not _LISTS.is_dir():
        pytest.skip(f"the lists released with EPAM-Net are not here: {_LISTS} is missing")
    lists = {"cs": _listed("CS"), "cv2": _listed("CV2")}
    found = _scan(tmp_path, *(f"{name}.mp4" for name in lists["cs"].keys() | lists["cv2"].keys()))
    assert found.left_out == ()
    for protocol, (train, val, test) in {"cs": (8761, 1831, 5372), "cv2": (7685, 3535, 1901)}.items():
        labels = {e.id: dict(e.labels).get(protocol) for e in found.entries}
        splits = {e.id: dict(e.splits).get(protocol) for e in found.entries}
        assert {name: (splits[name], labels[name]) for name in lists[protocol]} == lists[protocol]
        sides = [side for name, side in splits.items() if labels[name] is not None]
        assert [sides.count(side) for side in ("train", "val", "test")] == [train, val, test]

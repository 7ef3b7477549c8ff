from itertools import product
from pathlib import Path

import pytest

from harcache.pipeline.datasets.registry import Scan, scan
from harcache.pipeline.datasets.utd_mhad import CLASSES
from harcache.pipeline.params import IndexParams


def _scan(root: Path, *names: str) -> Scan:
    for name in names:
        (root / name).touch()
    return scan(root, IndexParams("utd_mhad"))


def test_every_name_tells_action_subject_and_trial(tmp_path: Path) -> None:
    takes = {f"a{a}_s{s}_t{t}": (a, s, t) for a, s, t in product(range(1, 28), range(1, 9), range(1, 5))}
    found = _scan(tmp_path, *(f"{name}_color.avi" for name in takes))
    assert found.left_out == ()
    assert {e.id: (dict(e.labels)["xsub"] + 1, e.subject, e.repetition) for e in found.entries} == takes
    sides = {s: {dict(e.splits)["xsub"] for e in found.entries if e.subject == s} for s in range(1, 9)}
    assert sides == {s: {"train" if s in (1, 3, 5, 7) else "test"} for s in range(1, 9)}


def test_every_action_has_a_name_of_its_own(tmp_path: Path) -> None:
    assert len(set(CLASSES)) == len(CLASSES) == 27
    assert (CLASSES[0], CLASSES[8], CLASSES[26]) == ("swipe left", "draw circle clockwise", "squat")
    assert _scan(tmp_path, "a1_s1_t1_color.avi").classes == {"xsub": CLASSES}


@pytest.mark.parametrize("name", ["a28_s1_t1_color.avi", "a1_s9_t1_color.avi", "a0_s1_t1_color.avi", "b.avi"])
def test_another_name_is_left_out(tmp_path: Path, name: str) -> None:
    found = _scan(tmp_path, name, "a1_s1_t1_color.avi")
    assert [entry.id for entry in found.entries] == ["a1_s1_t1"]
    ((left, why),) = found.left_out
    assert left == name
    assert why.startswith("name is not like a1_s1_t1_color.avi")

"""What the metrics count, by examples made by hand, and that they tell how the trained networks do."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.clips import read_classes
from pipeline.engine import Engine
from pipeline.errors import HarcacheError
from pipeline.params import DatasetParams
from stages import evaluate
from stages.evaluate import _top1_in_pairs, detection_quality, pck
from stages.workspace import Workspace

_A, _B = [10, 10, 50, 90], [60, 10, 100, 90]
_NOBODY = np.empty((0, 4))


def _boxes(*boxes: list[float]) -> np.ndarray:
    return np.array(boxes, float).reshape(-1, 4)


@pytest.mark.parametrize(
    ("found", "true", "counts"),
    [
        (_boxes(_A, _B), _boxes(_A, _B), (2, 2, 2)),
        (_boxes(_B, _A), _boxes(_A, _B), (2, 2, 2)),
        (_boxes(_A), _boxes(_A, _B), (1, 1, 2)),
        (_boxes(_A, _A), _boxes(_A), (1, 2, 1)),
        (_boxes(_A), _NOBODY, (0, 1, 0)),
        (_NOBODY, _boxes(_A), (0, 0, 1)),
        (_NOBODY, _NOBODY, (0, 0, 0)),
        # Overlap by a half and by a little less: 40 x 40 and 40 x 39 of 40 x 80 pixels.
        (_boxes([10, 50, 50, 90]), _boxes(_A), (1, 1, 1)),
        (_boxes([10, 51, 50, 90]), _boxes(_A), (0, 1, 1)),
    ],
)
def test_a_box_is_right_for_one_true_box_that_it_overlaps_by_half(
    found: np.ndarray, true: np.ndarray, counts: tuple[int, int, int]
) -> None:
    assert detection_quality([found], [true]) == counts


def test_boxes_are_counted_over_frames_and_their_scores_ignored() -> None:
    scored = np.column_stack([_boxes(_A), [0.7]])
    assert detection_quality([scored, _NOBODY, scored], [_boxes(_A), _boxes(_A, _B), _NOBODY]) == (1, 2, 3)


def test_boxes_of_other_frames_than_the_truths_fail() -> None:
    with pytest.raises(ValueError, match="longer than argument 1"):
        detection_quality([_boxes(_A)], [_boxes(_A), _boxes(_A)])


def _person(x: float) -> np.ndarray:
    """A person (17, 2) at ``x`` whose torso is 50 pixels long, so that 10 pixels are near enough."""
    joints = np.column_stack([np.full(17, x), np.linspace(0, 160, 17)])
    joints[[5, 6]], joints[[11, 12]] = (x, 40), (x, 90)
    return joints


def _clip(*persons: np.ndarray) -> np.ndarray:
    """Persons (17, 2) as (M, 1, 17, 2)."""
    return np.array(persons).reshape(-1, 1, 17, 2)


def test_exact_keypoints_are_all_right_in_any_order() -> None:
    assert pck(_clip(_person(100), _person(200)), _clip(_person(200), _person(100))) == (34, 34)


@pytest.mark.parametrize(("off", "right"), [(10, 17), (10.1, 16), (-9.9, 17)])
def test_a_keypoint_is_right_within_a_fifth_of_the_torso(off: float, right: int) -> None:
    found = _person(100)
    found[9, 0] += off
    assert pck(_clip(found), _clip(_person(100))) == (right, 17)


def test_a_true_person_whom_nobody_found_is_all_wrong() -> None:
    true = _clip(_person(100), _person(200))
    assert pck(_clip(_person(100)), true) == (17, 34)
    assert pck(_clip(_person(100), np.full((17, 2), np.nan)), true) == (17, 34)
    assert pck(np.empty((0, 1, 17, 2)), true) == (0, 34)


def test_persons_who_are_not_there_count_for_nothing() -> None:
    assert pck(_clip(_person(100), _person(300)), _clip(_person(100))) == (17, 17)


def test_persons_are_paired_in_each_frame_anew() -> None:
    one, other = _person(100), _person(200)
    true = np.array([[one, one], [other, other]])
    found = np.array([[one, other], [other, one]])
    assert pck(found, true) == (68, 68)


def test_in_pairs_only_the_two_scores_of_the_pair_matter() -> None:
    labels = np.array([0, 1, 2, 3, 4])
    scores = np.zeros((5, 5))
    scores[:, 4] = 9
    scores[0, 0] = scores[1, 1] = scores[2, 2] = scores[3, 2] = 1
    assert _top1_in_pairs(scores, labels, [(0, 1)]) == 1
    assert _top1_in_pairs(scores, labels, [(2, 3)]) == 0.5
    assert _top1_in_pairs(scores, labels, [(0, 1), (2, 3)]) == 0.75


def test_a_tie_in_a_pair_is_not_right() -> None:
    assert _top1_in_pairs(np.zeros((2, 2)), np.array([0, 1]), [(0, 1)]) == 0


def _run(params: DatasetParams, workspace: Workspace) -> dict[str, dict[str, float]]:
    with Engine(workers=0) as engine:
        return evaluate.run(params, workspace, engine)


def test_the_metrics_tell_of_every_stage_and_network(
    trained: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    workspace = replace(trained, metrics=tmp_path / "metrics" / "demo.json")
    metrics = _run(params, workspace)
    assert json.loads(workspace.metrics.read_text()) == metrics
    assert metrics["clips"] == {
        stage: {"ok": 6, "skipped": 0, "failed": 0}
        for stage in ("index", "detect", "pose", "crop", "heatmap", "rgb")
    }
    networks = {"pose", "rgb", "epam", "score_fusion"}
    assert metrics["top1"].keys() == networks | {"pose_in_object_pairs"}
    assert {metrics["top1"][name] for name in networks} <= {0, 0.5, 1}
    assert metrics["detect"]["recall"] > 0.95 and metrics["detect"]["precision"] > 0.95
    assert metrics["pose"]["pck"] > 0.95


def test_predictions_are_a_row_a_test_clip_and_agree_with_the_metric(
    trained: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    workspace = replace(trained, metrics=tmp_path / "demo.json")
    metrics = _run(params, workspace)
    with workspace.predictions.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["actual"]) for row in rows] == [
        ("S001C001P003R001A005", "drink from a cup"), ("S001C001P003R001A011", "shake hands")
    ]  # fmt: skip
    assert {row["predicted"] for row in rows} <= set(read_classes(workspace.classes)["xsub"])
    right = sum(row["actual"] == row["predicted"] for row in rows)
    assert right / len(rows) == metrics["top1"]["epam"]


def test_the_same_networks_get_the_same_metrics_and_ten_samples_a_clip_count_as_one(
    trained: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    first, second = (replace(trained, metrics=tmp_path / name / "demo.json") for name in "ab")
    assert params.train is not None
    many = replace(params.train, evaluate=replace(params.train.evaluate, clips=10))
    for workspace in (first, second):
        _run(replace(params, train=many), workspace)
    assert first.metrics.read_bytes() == second.metrics.read_bytes()
    assert first.predictions.read_bytes() == second.predictions.read_bytes()
    assert len(first.predictions.read_text().splitlines()) == 1 + 2


def test_a_dataset_without_truth_is_measured_without_it(
    trained: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    metrics = _run(params, replace(trained, videos=tmp_path, metrics=tmp_path / "demo.json"))
    assert metrics.keys() == {"clips", "top1"}
    assert "pose_in_object_pairs" not in metrics["top1"]


def test_networks_that_are_not_trained_yet_are_named(demo: Workspace, params: DatasetParams) -> None:
    with pytest.raises(HarcacheError, match=r"no checkpoint .*training/pose/network\.pt; train it first"):
        _run(params, demo)

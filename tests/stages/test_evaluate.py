"""What the metrics count, by examples made by hand, and that they tell how the trained networks do."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from harcache.cache.streaming.loader import ClipLoader
from harcache.models.checkpoints import load_checkpoint, load_network, save_checkpoint
from harcache.models.networks.xshiftnet import PoseXShiftNet
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_classes, read_manifest, write_manifest
from harcache.pipeline.params import DatasetParams, EvaluateParams
from harcache.pipeline.work.engine import Engine
from harcache.stages import evaluate
from harcache.stages.scoring.accuracy import accuracy_within_pairs
from harcache.stages.scoring.extraction import detection_quality, pck
from harcache.stages.shared.quality import FLAGS
from harcache.stages.shared.workspace import Workspace
from harcache.stages.training.inputs import preparation
from harcache.stages.training.samples import CHECKPOINT, make_dataset, split_clips
from tests.projects import digests

_ACCURACY = {"top5", "mean_class", "parameters", "multiply_adds", "test"}
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
    assert accuracy_within_pairs(scores, labels, [(0, 1)]) == 1
    assert accuracy_within_pairs(scores, labels, [(2, 3)]) == 0.5
    assert accuracy_within_pairs(scores, labels, [(0, 1), (2, 3)]) == 0.75


def test_a_tie_in_a_pair_is_not_right() -> None:
    assert accuracy_within_pairs(np.zeros((2, 2)), np.array([0, 1]), [(0, 1)]) == 0


def _run(params: DatasetParams, workspace: Workspace) -> dict[str, dict[str, float]]:
    with Engine(workers=0) as engine:
        return evaluate.run(params, workspace, engine)


def _run_custom(
    checkpoints: list[Path], views: int | None, out: Path, params: DatasetParams, workspace: Workspace
) -> dict[str, Any]:
    with Engine(workers=0) as engine:
        return evaluate.run_custom(checkpoints, views, out, False, params, workspace, engine)


def _as_released(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name and shape weights as the released implementation does: on many GPUs, with 3-D convolutions."""
    flat = {f"module.{name}": value for name, value in network.state_dict().items()}
    return {
        name: value.unsqueeze(2) if value.ndim == 4 and "fc" not in name else value
        for name, value in flat.items()
    }


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
    assert metrics["flags"].keys() == set(FLAGS) and metrics["flags"]["nobody"] == 0
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
    assert metrics.keys() == {"clips", "top1", "flags", *_ACCURACY}
    assert "pose_in_object_pairs" not in metrics["top1"]


def test_networks_that_are_not_trained_yet_are_named(demo: Workspace, params: DatasetParams) -> None:
    with pytest.raises(HarcacheError, match=r"no checkpoint .*training/pose/network\.pt; train it first"):
        _run(params, demo)


@pytest.fixture(scope="module")
def own(trained: Workspace, params: DatasetParams, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an evaluation of the three trained networks writes."""
    out = tmp_path_factory.mktemp("own")
    metrics = _run_custom([], None, out, params, trained)
    assert metrics == json.loads((out / "metrics.json").read_text())
    return out


def test_scores_are_kept_for_other_programs_and_say_what_the_metrics_say(
    trained: Workspace, own: Path
) -> None:
    metrics = json.loads((own / "metrics.json").read_text())
    with np.load(own / "scores.npz") as kept:  # refuses pickled objects
        assert kept["id"].tolist() == ["S001C001P003R001A005", "S001C001P003R001A011"]
        assert kept["classes"].tolist() == read_classes(trained.classes)["xsub"]
        for network, right in metrics["top1"].items():
            assert (kept[network].argmax(axis=1) == kept["label"]).mean() == right
        assert np.allclose(kept["score_fusion"].sum(axis=1), 1)


def test_tables_and_pictures_tell_of_each_stream_and_the_fusion(trained: Workspace, own: Path) -> None:
    metrics = json.loads((own / "metrics.json").read_text())
    names = read_classes(trained.classes)["xsub"]
    for network in ("pose", "rgb", "epam", "score_fusion"):
        table = list(csv.reader((own / "tables" / f"confusion-{network}.csv").open()))
        counts = np.array([row[1:] for row in table[1:]], int)
        assert table[0] == ["actual", *names] and [row[0] for row in table[1:]] == names
        assert counts.trace() / counts.sum() == metrics["top1"][network]
        picture = ElementTree.parse(own / "pictures" / f"confusion-{network}.svg").getroot()
        assert f"{network}: top-1 {metrics['top1'][network]:.1%} of 2 clips" in picture.get("aria-label", "")
    rows = list(csv.DictReader((own / "tables" / "classes.csv").open()))
    assert len(rows) == 4 * 12 and [row["name"] for row in rows[:12]] == names
    costs = {row["network"]: row for row in csv.DictReader((own / "tables" / "networks.csv").open())}
    assert int(costs["epam"]["parameters"]) == metrics["parameters"]["epam"] > metrics["parameters"]["pose"]
    assert all(float(row["latency_ms"]) > 0 and int(row["multiply_adds"]) > 0 for row in costs.values())


def test_a_network_of_ones_own_is_measured_as_the_trained_one_and_changes_nothing_of_the_pipeline(
    trained: Workspace, params: DatasetParams, own: Path, tmp_path: Path
) -> None:
    whole = json.loads((own / "metrics.json").read_text())
    released = tmp_path / "released.pth"
    network, _ = load_network(trained.training("epam") / CHECKPOINT)
    torch.save({"model_state_dict": _as_released(network)}, released)
    before = digests(trained.data)
    found = _run_custom([trained.training("epam") / CHECKPOINT, released], 1, tmp_path, params, trained)
    assert found["top1"] == {"epam": whole["top1"]["epam"], "epam-2": whole["top1"]["epam"]}
    with np.load(tmp_path / "scores.npz") as kept:
        assert np.allclose(kept["epam"], kept["epam-2"], atol=1e-5)
    assert digests(trained.data) == before and not trained.metrics.exists()


def test_ten_samples_are_the_mean_of_the_ten_that_testing_draws(
    trained: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    assert params.train is not None
    _run_custom([trained.training("pose") / CHECKPOINT], 10, tmp_path, params, trained)
    many = replace(params.train, evaluate=EvaluateParams(10))
    samples = make_dataset("pose", trained, many, split_clips(trained, many, "test"), False)
    network, _ = load_network(trained.training("pose") / CHECKPOINT)
    with torch.inference_mode():
        batch = preparation("epam", params)(next(iter(ClipLoader(samples, len(samples)))))
        logits = network.eval()(batch["heatmaps"]).view(2, 10, -1)
    assert not torch.allclose(logits[:, 0], logits[:, 1])
    with np.load(tmp_path / "scores.npz") as kept:
        assert np.allclose(kept["pose"], logits.mean(1), atol=1e-5)


def _changed(trained: Workspace, out: Path, **change: object) -> Path:
    """Save the trained pose stream with other classes or other words about it."""
    network, checkpoint = load_network(trained.training("pose") / CHECKPOINT)
    given = {"classes": checkpoint.classes, "extra": checkpoint.extra} | change
    save_checkpoint(out / "changed.pt", network, **given)  # type: ignore[arg-type]
    return out / "changed.pt"


def test_a_checkpoint_of_other_classes_is_refused(
    trained: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    names = read_classes(trained.classes)["xsub"]
    other = _changed(trained, tmp_path, classes=[*names[:-1], "juggle"])
    message = "has 'juggle' as class 11, but demo's 'xsub' has 'push'; give the dataset and protocol"
    with pytest.raises(HarcacheError, match=message):
        _run_custom([other], None, tmp_path, params, trained)
    more = tmp_path / "more.pt"
    save_checkpoint(more, PoseXShiftNet(60, width=8, blocks=(1, 1, 1)))
    with pytest.raises(HarcacheError, match="tells 60 classes apart, but demo's 'xsub' has 12"):
        _run_custom([more], None, tmp_path, params, trained)


def test_a_network_that_may_know_the_test_clips_is_refused(
    trained: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    extra = load_checkpoint(trained.training("pose") / CHECKPOINT).extra | {"protocol": "xview"}
    other = _changed(trained, tmp_path, extra=extra)
    with pytest.raises(HarcacheError, match=r"trained on the protocol 'xview' and may know test clips"):
        _run_custom([other], None, tmp_path, params, trained)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a checkpoint"),
        (b"PK\x03\x04 torn", "cannot be read as a checkpoint"),
        ({"weights": 3}, "holds no state dict"),
        ({"conv.weight": torch.zeros(2)}, "holds no X-ShiftNet or EPAM-Net"),
        ({"backbone.conv1_s.conv.weight": torch.zeros(3)}, "holds no X-ShiftNet or EPAM-Net"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_refused_before_any_work(
    trained: Workspace, params: DatasetParams, tmp_path: Path, content: object, message: str
) -> None:
    path = tmp_path / "given.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(HarcacheError, match=message):
        _run_custom([trained.training("pose") / CHECKPOINT, path], None, tmp_path / "own", params, trained)
    assert not (tmp_path / "own").exists()


def test_an_empty_test_split_is_refused(
    own_demo: Workspace, trained: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    clips = read_manifest(own_demo.manifest)
    write_manifest(own_demo.manifest, [clip for clip in clips if clip.split("xsub") == "train"])
    with pytest.raises(HarcacheError, match="no labelled clips in the test split of 'xsub'"):
        _run_custom([trained.training("pose") / CHECKPOINT], None, tmp_path, params, own_demo)

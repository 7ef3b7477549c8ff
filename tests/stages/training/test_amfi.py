"""AMFI-Net learns in its two steps from the caches, and is measured and asked as every other network."""

import csv
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harcache.cache.streaming.loader import ClipLoader
from harcache.commands.predict import Options, Predictor
from harcache.models.checkpoints import load_checkpoint, load_network, save_checkpoint
from harcache.models.networks.agcn import AGCN
from harcache.models.networks.amfi_net import AMFINet, ResNet3D18, amfi_loss
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_manifest
from harcache.pipeline.params import (
    AmfiModelParams,
    AmfiParams,
    AmfiSampleParams,
    DatasetParams,
    FusionRecipeParams,
    KinectPoseParams,
    RecipeParams,
    from_mapping,
)
from harcache.pipeline.params.networks import AMFI_NETWORKS, Network
from harcache.pipeline.work.engine import Engine
from harcache.stages import crop, evaluate, heatmap, pose, train
from harcache.stages.scoring.accuracy import softmax
from harcache.stages.scoring.results import Outputs
from harcache.stages.shared.workspace import Workspace
from harcache.stages.train import TrainingOptions
from harcache.stages.training.inputs import preparation
from harcache.stages.training.learning import Learner, loss_of
from harcache.stages.training.samples import CHECKPOINT, make_dataset, split_clips
from tests.kinect_files import body, write_skeleton
from tests.tiny_demo import PARAMS

# Four clips, a step an epoch.
_STREAM = RecipeParams(epochs=3, batch_size=4, lr=0.02, precision="float32", flip=0.0)
_FUSION = FusionRecipeParams(epochs=2, batch_size=4, lr=0.05, precision="float32", flip=0.0)
_AMFI = AmfiParams(
    "xsub",
    seed=3,
    skeleton=_STREAM,
    resnet=replace(_STREAM, epochs=2),
    amfi=_FUSION,
    sample=AmfiSampleParams(8, 4, rgb_size=32),
    model=AmfiModelParams(dropout=0.0),
)
_PARAMS = replace(PARAMS, amfi=_AMFI)


def _with(**values: Any) -> DatasetParams:
    return replace(PARAMS, amfi=replace(_AMFI, **values))


def _run(network: Network, params: DatasetParams, workspace: Workspace) -> str | None:
    with Engine(workers=0) as engine:
        return train.run(network, params, workspace, engine, TrainingOptions()).stopped


def _fresh(demo: Workspace, project: Path) -> Workspace:
    """A workspace with the demo's stores and no training."""
    workspace = Workspace.under(project, "demo", demo.videos.parent)
    workspace.data.mkdir(parents=True)
    for name in ("manifest.csv", "classes.csv", "heatmaps.zarr", "rgb.zarr"):
        (workspace.data / name).symlink_to(demo.data / name)
    return workspace


@pytest.fixture(scope="module")
def taught(demo: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny demo with AMFI-Net and its streams trained. No test changes it."""
    workspace = _fresh(demo, tmp_path_factory.mktemp("taught"))
    for network in AMFI_NETWORKS:
        assert _run(network, _PARAMS, workspace) is None
    return workspace


@pytest.mark.parametrize(("network", "kind"), [("skeleton", AGCN), ("resnet", ResNet3D18), ("amfi", AMFINet)])
def test_each_step_learns_and_its_checkpoint_says_what_it_is(
    taught: Workspace, network: Network, kind: type
) -> None:
    made, checkpoint = load_network(taught.training(network) / CHECKPOINT)
    assert type(made) is kind and len(checkpoint.classes) == 12
    assert checkpoint.extra["protocol"] == "xsub"
    assert from_mapping(checkpoint.extra["dataset"]) == _PARAMS
    with (taught.training(network) / "plots" / "loss.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["split"] == "train"]
    assert len(losses) == getattr(_AMFI, network).epochs
    assert losses[-1] < losses[0]


def test_the_second_step_leaves_the_streams_bit_for_bit_and_teaches_the_fusion(taught: Workspace) -> None:
    whole, skeleton, resnet = (
        load_checkpoint(taught.training(network) / CHECKPOINT).state_dict
        for network in ("amfi", "skeleton", "resnet")
    )
    kept = 0
    for stream, name in ((skeleton, "skeleton_backbone"), (resnet, "rgb_backbone")):
        backbone = {key: value for key, value in stream.items() if key.startswith("backbone.")}
        assert any("running_mean" in key for key in backbone)
        for key, value in backbone.items():
            assert torch.equal(whole[key.replace("backbone", name, 1)], value)
        kept += len(backbone)
    fusion = {key: value for key, value in whole.items() if key.startswith("fusion.")}
    assert kept + len(fusion) == len(whole)
    # These weights start at 0.
    assert fusion["fusion.association.w_z.weight"].any() and fusion["fusion.gate.bias"].any()


def test_the_loss_is_amfi_nets_own(taught: Workspace) -> None:
    clips = split_clips(taught, _AMFI, "train")
    batch = next(iter(ClipLoader(make_dataset("amfi", taught, _AMFI, clips, True), 4)))
    ready = preparation("amfi", _PARAMS)(batch)
    network, _ = load_network(taught.training("amfi") / CHECKPOINT)
    network.eval()
    with torch.no_grad():
        for weight in (0.0, 1.5):
            loss, right = loss_of(network, ready, replace(_FUSION, gate_weight=weight))
            logits, gate = network(ready["rgb"], ready["skeletons"])
            assert torch.equal(loss, amfi_loss(logits, gate, ready["label"], weight))
            assert right == (logits.argmax(1) == ready["label"]).sum()
    network.train()
    nobody = {name: value[:0] for name, value in ready.items()}
    loss, right = loss_of(network, nobody, _FUSION)  # a process's share may be empty
    loss.backward()
    assert loss == 0 and right == 0


def test_a_stopped_second_step_goes_on_to_the_same_weights(
    demo: Workspace, taught: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = _fresh(demo, tmp_path)
    again.training("amfi").parent.mkdir()
    for stream in ("skeleton", "resnet"):
        again.training(stream).symlink_to(taught.training(stream))
    learn = Learner._learn_from

    def stopping(learner: Learner, batch: Any) -> None:
        learn(learner, batch)
        if learner.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "_learn_from", stopping)
        assert _run("amfi", _PARAMS, again) == "SIGTERM"
    assert not (again.training("amfi") / CHECKPOINT).exists()
    assert _run("amfi", _PARAMS, again) is None
    first, second = (load_checkpoint(w.training("amfi") / CHECKPOINT).state_dict for w in (taught, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def measured(
    demo: Workspace, taught: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """What an evaluation of the three networks returns, and the folder where the report looks for it."""
    own = _fresh(demo, tmp_path_factory.mktemp("measured"))
    (own.data / "training").symlink_to(taught.data / "training")
    with Engine(workers=0) as engine:
        metrics = evaluate.run_custom([], None, None, True, _PARAMS, own, engine)
    return metrics, Outputs.of_amfi(own).folder


def test_the_fusion_and_its_streams_are_measured_side_by_side(
    measured: tuple[dict[str, Any], Path],
) -> None:
    metrics, out = measured
    assert metrics["top1"].keys() == {*AMFI_NETWORKS, "amfi_score_fusion"}
    assert metrics["parameters"]["resnet"] > 30e6 > metrics["parameters"]["skeleton"]
    predicted = list(csv.DictReader((out / "predictions.csv").open()))
    with np.load(out / "scores.npz") as kept:
        said = kept["classes"][kept["amfi"].argmax(1)].tolist()
    assert [row["predicted"] for row in predicted] == said


@pytest.mark.parametrize("network", ["skeleton", "amfi"])
def test_a_raw_video_is_predicted_as_its_cached_clip(
    taught: Workspace, measured: tuple[dict[str, Any], Path], network: Network
) -> None:
    with np.load(measured[1] / "scores.npz") as kept:
        id, wanted = str(kept["id"][1]), softmax(kept[network].astype(float))[1]
    clip = next(clip for clip in read_manifest(taught.manifest) if clip.id == id)
    predictor = Predictor(taught.training(network) / CHECKPOINT, None, None, None, "cpu")
    (window,) = predictor.predict(taught.videos / clip.video, Options(top=12))["windows"]
    for one in window["classes"]:
        assert one["probability"] == pytest.approx(wanted[one["label"]], abs=1e-5)


def test_networks_of_two_protocols_are_not_compared(taught: Workspace, trained: Workspace) -> None:
    paths = [trained.training("pose") / CHECKPOINT, taught.training("skeleton") / CHECKPOINT]
    message = r"training\.demo\.protocol is 'xsub', but amfi\.demo\.protocol 'xview'; compare networks of one"
    with Engine(workers=0) as engine, pytest.raises(HarcacheError, match=message):
        evaluate.run_custom(paths, None, None, False, _with(protocol="xview"), taught, engine)


@pytest.fixture(scope="module")
def kinect(
    demo: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Workspace, DatasetParams]]:
    """The tiny demo with skeletons of a Kinect in the place of estimated poses."""
    workspace = _fresh(demo, tmp_path_factory.mktemp("kinect"))
    (workspace.data / "heatmaps.zarr").unlink()
    (workspace.data / "detections").symlink_to(demo.data / "detections")
    source = workspace.data / "skeletons"
    for clip in read_manifest(workspace.manifest):
        pace = 0.01 if clip.id.endswith("A005") else -0.02
        frames = [{7: body(pace * t)} for t in range(clip.frames)]
        write_skeleton(source / f"{clip.id}.skeleton", frames)
    params = replace(_with(model=AmfiModelParams("ntu25")), pose=KinectPoseParams("kinect", str(source), 2))
    with Engine(workers=0) as engine:
        for stage in (pose, crop, heatmap):
            stage.run(params, workspace, engine)
    yield workspace, params


def test_kinects_skeletons_are_learnt_from_in_space(kinect: tuple[Workspace, DatasetParams]) -> None:
    workspace, params = kinect
    assert _run("skeleton", params, workspace) is None
    checkpoint = workspace.training("skeleton") / CHECKPOINT
    assert load_checkpoint(checkpoint).config["graph"] == "ntu25"
    assert params.amfi is not None
    clips = split_clips(workspace, params.amfi, "test")
    sample = make_dataset("skeleton", workspace, params.amfi, clips, False)[0]
    assert sample["positions"].shape == (8, 2, 25, 3)
    with Engine(workers=0) as engine:
        metrics = evaluate.run_custom(
            [checkpoint], None, workspace.data / "own", False, params, workspace, engine
        )
    assert metrics["top1"].keys() == {"skeleton"}
    message = r"network\.pt reads the skeletons of a Kinect \(graph ntu25\), which no video has; evaluate"
    with pytest.raises(HarcacheError, match=message):
        Predictor(checkpoint, None, None, None, "cpu")


@contextmanager
def _refused_before_any_step(message: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Learner, "_learn_from", lambda *_: pytest.fail("training began"))
    with pytest.raises(HarcacheError, match=message):
        yield


def test_kinects_graph_is_refused_for_keypoints_of_videos(
    demo: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = (
        r"heatmaps\.zarr has no positions, expected 25; amfi\.demo\.model\.graph coco17 takes the poses that"
    )
    with _refused_before_any_step(message, monkeypatch):
        _run("skeleton", _with(model=AmfiModelParams("ntu25")), _fresh(demo, tmp_path))


def test_cocos_graph_is_refused_for_a_kinects_joints(
    kinect: tuple[Workspace, DatasetParams], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, params = kinect
    message = r"heatmaps\.zarr has keypoints of 25 joints, expected 17"
    with _refused_before_any_step(message, monkeypatch):
        _run("skeleton", replace(params, amfi=_AMFI), workspace)


def test_a_trained_network_of_another_graph_is_refused_before_others_are_measured(
    taught: Workspace, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "agcn.pt", AGCN(12, "ntu25"))
    paths = [taught.training("skeleton") / CHECKPOINT, tmp_path / "agcn.pt"]
    with Engine(workers=0) as engine, pytest.raises(HarcacheError, match="has no positions, expected 25"):
        evaluate.run_custom(paths, None, tmp_path / "own", False, _PARAMS, taught, engine)
    assert not (tmp_path / "own").exists()


def test_streams_of_another_graph_are_refused(
    taught: Workspace, demo: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = _fresh(demo, tmp_path)
    save_checkpoint(
        own.training("skeleton") / CHECKPOINT,
        AGCN(12, "ntu25"),
        load_checkpoint(taught.training("resnet") / CHECKPOINT).classes,
    )
    own.training("resnet").symlink_to(taught.training("resnet"))
    message = "has the graph ntu25, but amfi's model.graph is coco17; train the skeleton stream again"
    with _refused_before_any_step(message, monkeypatch):
        _run("amfi", _PARAMS, own)


def test_the_second_step_without_the_first_says_what_is_missing(demo: Workspace, tmp_path: Path) -> None:
    with pytest.raises(HarcacheError, match=r"no checkpoint .*training/resnet/network\.pt; train it first"):
        _run("amfi", _PARAMS, _fresh(demo, tmp_path))


def test_a_dataset_without_amfis_parameters_says_so(demo: Workspace) -> None:
    with pytest.raises(HarcacheError, match=r"params\.yaml has no amfi\.demo; add it, with a protocol and"):
        _run("skeleton", PARAMS, demo)


def test_random_crops_of_skeletons_are_refused() -> None:
    with pytest.raises(HarcacheError, match=r"amfi\.demo\.skeleton\.crop is set, but only heatmaps are"):
        _with(skeleton=replace(_STREAM, crop=0.5))


def test_frames_are_read_by_who_sees_them_alone(taught: Workspace) -> None:
    clips = split_clips(taught, _AMFI, "train")
    drawn = {"label", "index", "flip"}
    reads = {"skeleton": {"keypoints"}, "resnet": {"rgb"}, "amfi": {"keypoints", "rgb"}}
    network: Network
    for network in AMFI_NETWORKS:
        assert make_dataset(network, taught, _AMFI, clips, True)[0].keys() == reads[network] | drawn

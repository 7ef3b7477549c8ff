"""Training runs from the caches, the same every time, and says what is missing before it starts."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harcache.cache.errors import CacheError
from harcache.cache.streaming.loader import ClipLoader
from harcache.models.checkpoints import load_checkpoint, load_network
from harcache.models.networks.epam_net import EPAMNet
from harcache.models.networks.xshiftnet import PoseXShiftNet, RGBXShiftNet
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_manifest, write_manifest
from harcache.pipeline.params import DatasetParams, FolderIndexParams, from_mapping, to_mapping
from harcache.pipeline.params.networks import EPAM_NETWORKS, NETWORKS, Network
from harcache.pipeline.work.engine import Engine
from harcache.stages import index, train
from harcache.stages.shared.workspace import Workspace
from harcache.stages.training.inputs import preparation
from harcache.stages.training.samples import CHECKPOINT, make_dataset, split_clips
from harcache.stages.training.trained import _KINDS


def _run(network: Network, params: DatasetParams, workspace: Workspace) -> None:
    with Engine(workers=0) as engine:
        train.run(network, params, workspace, engine)


def _with(params: DatasetParams, **values: object) -> DatasetParams:
    assert params.train is not None
    return replace(params, train=replace(params.train, **values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("network", "kind"), [("pose", PoseXShiftNet), ("rgb", RGBXShiftNet), ("epam", EPAMNet)]
)
def test_a_checkpoint_holds_the_network_its_classes_and_how_it_was_made(
    trained: Workspace, params: DatasetParams, network: Network, kind: type
) -> None:
    model, checkpoint = load_network(trained.training(network) / CHECKPOINT)
    assert type(model) is kind
    assert checkpoint.classes[4] == "drink from a cup" and len(checkpoint.classes) == 12
    assert params.train is not None
    made = {"protocol": "xsub", "epochs": 1, "params": params.train.fingerprint}
    assert checkpoint.extra == made | {"dataset": to_mapping(params)}
    assert from_mapping(checkpoint.extra["dataset"]) == params
    assert all(torch.isfinite(value).all() for value in checkpoint.state_dict.values())


def test_every_network_that_a_checkpoint_may_hold_is_one_to_train() -> None:
    assert set(_KINDS.values()) == set(NETWORKS)


@pytest.mark.parametrize("network", EPAM_NETWORKS)
def test_curves_have_a_row_an_epoch_and_split(trained: Workspace, network: Network) -> None:
    for name in ("loss", "accuracy"):
        with (trained.training(network) / "plots" / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["epoch"], row["split"]) for row in rows] == [("1", "test"), ("1", "train")]
        assert all(0 <= float(row[name]) < (2 if name == "accuracy" else 100) for row in rows)


@pytest.mark.parametrize("network", EPAM_NETWORKS)
def test_a_second_run_gives_the_same_weights_bit_for_bit(
    trained: Workspace, demo: Workspace, params: DatasetParams, tmp_path: Path, network: Network
) -> None:
    again = replace(demo, data=tmp_path)
    for name in ("manifest.csv", "classes.csv", "heatmaps.zarr", "rgb.zarr"):
        (tmp_path / name).symlink_to(demo.data / name)
    if network == "epam":
        (tmp_path / "training").mkdir()
        for stream in ("pose", "rgb"):
            again.training(stream).symlink_to(trained.training(stream))
    _run(network, params, again)
    first, second = (load_checkpoint(w.training(network) / CHECKPOINT).state_dict for w in (trained, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights(
    trained: Workspace, own_demo: Workspace, params: DatasetParams
) -> None:
    _run("pose", _with(params, seed=4), own_demo)
    first, second = (load_checkpoint(w.training("pose") / CHECKPOINT).state_dict for w in (trained, own_demo))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_epam_net_starts_from_both_streams(
    trained: Workspace, own_demo: Workspace, params: DatasetParams
) -> None:
    assert params.train is not None
    for stream in ("pose", "rgb"):
        own_demo.training(stream).parent.mkdir(exist_ok=True)
        own_demo.training(stream).symlink_to(trained.training(stream))
    slow = replace(params.train.epam, lr=1e-9)
    _run("epam", _with(params, epam=slow), own_demo)
    epam = load_checkpoint(own_demo.training("epam") / CHECKPOINT).state_dict
    for stream in ("pose", "rgb"):
        alone = load_checkpoint(trained.training(stream) / CHECKPOINT).state_dict
        weights = {name: value for name, value in alone.items() if name.endswith("weight")}
        assert weights
        for name, value in weights.items():
            torch.testing.assert_close(epam[f"{stream}_{name}"], value, rtol=0, atol=1e-5)


def test_training_sees_its_split_alone(demo: Workspace, params: DatasetParams) -> None:
    assert params.train is not None
    by_split = {split: split_clips(demo, params.train, split) for split in ("train", "test")}
    assert [{clip.subject for clip in clips} for clips in by_split.values()] == [{1, 2}, {3}]
    assert sorted(clip.id for clips in by_split.values() for clip in clips) == [
        clip.id for clip in read_manifest(demo.manifest)
    ]


@pytest.mark.parametrize(
    ("network", "arrays"), [("pose", {"heatmaps"}), ("rgb", {"rgb"}), ("epam", {"rgb", "heatmaps"})]
)
def test_a_network_reads_only_what_it_needs(
    demo: Workspace, params: DatasetParams, network: Network, arrays: set[str]
) -> None:
    assert params.train is not None
    clips = split_clips(demo, params.train, "train")
    sample = make_dataset(network, demo, params.train, clips, True)[0]
    assert sample.keys() == arrays | {"label", "index", "flip"}
    assert sample["label"] == 4


def test_heatmaps_drawn_from_keypoints_are_those_of_the_volume(
    demo: Workspace, params: DatasetParams
) -> None:
    assert params.train is not None
    clips = split_clips(demo, params.train, "test")
    drawn = replace(params.train, sample=replace(params.train.sample, heatmaps="keypoints"))
    maps = []
    for chosen in (params.train, drawn):
        batches = ClipLoader(make_dataset("pose", demo, chosen, clips, False), len(clips))
        maps.append(preparation("epam", params)(next(iter(batches)))["heatmaps"])
    assert maps[0].max() > 0.3
    # Half a grey level that the volume rounds by, and what float16 moves a joint.
    assert (maps[0] - maps[1]).abs().max() < 5.5 / 255


def test_ten_clip_testing_takes_ten_samples_of_a_clip(demo: Workspace, params: DatasetParams) -> None:
    assert params.train is not None
    many = replace(params.train, evaluate=replace(params.train.evaluate, clips=10))
    clips = split_clips(demo, many, "test")
    assert len(make_dataset("pose", demo, many, clips, False)) == 20
    assert len(make_dataset("pose", demo, many, clips, True)) == 2


def test_a_dataset_without_training_parameters_fails(demo: Workspace, params: DatasetParams) -> None:
    with pytest.raises(HarcacheError, match=r"params\.yaml has no training\.demo; add it, with a protocol"):
        _run("pose", replace(params, train=None), demo)


def test_an_unknown_protocol_is_named_with_the_nearest(demo: Workspace, params: DatasetParams) -> None:
    message = r"training\.demo\.protocol is 'xsubb', which the dataset lacks\. Did you mean 'xsub'\?"
    with pytest.raises(HarcacheError, match=message):
        _run("pose", _with(params, protocol="xsubb"), demo)


def test_a_dataset_without_labels_fails(own_demo: Workspace, params: DatasetParams) -> None:
    plain = replace(params, index=FolderIndexParams("folder"))
    with Engine(workers=0) as engine:
        index.run(plain, own_demo, engine)
    with pytest.raises(HarcacheError, match=r"'xsub', which the dataset lacks\. Its clips have no labels"):
        _run("pose", plain, own_demo)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_label_without_a_class_is_named_before_any_work(
    own_demo: Workspace, params: DatasetParams, split: str
) -> None:
    first, *others = sorted(read_manifest(own_demo.manifest), key=lambda clip: clip.split("xsub") != split)
    own_demo.manifest.unlink()
    write_manifest(own_demo.manifest, [replace(first, labels=(("xsub", 12),)), *others])
    message = (
        rf"clip '{first.id}' has label 12 in xsub, of which .*classes\.csv names 12 classes, from 0 to 11"
    )
    with pytest.raises(HarcacheError, match=message):
        _run("pose", params, own_demo)


@pytest.mark.parametrize(("store", "size"), [("rgb", 48), ("heatmap", 24)])
def test_a_store_made_with_other_parameters_is_refused(
    demo: Workspace, params: DatasetParams, store: str, size: int
) -> None:
    other = replace(params, **{store: replace(getattr(params, store), size=size)})
    with pytest.raises(CacheError, match=rf"parameters\.size = \d+, but {size} is asked for"):
        _run("pose", other, demo)


@pytest.mark.parametrize("network", EPAM_NETWORKS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"rgb_blocks": (1, 1, 1, 1)}}, r"2x2 and the pose features 4x4.*model\.rgb_blocks"),
        ({"sample": {"rgb_frames": 3}}, "8 heatmaps cannot be aligned with 3 RGB frames"),
        ({"model": {"attention": "nestd"}}, "there is no attention 'nestd'"),
    ],
)
def test_no_stream_is_trained_that_epam_net_could_not_join(
    demo: Workspace, params: DatasetParams, network: Network, change: dict[str, dict], message: str
) -> None:
    assert params.train is not None
    changed = {key: replace(getattr(params.train, key), **values) for key, values in change.items()}
    with pytest.raises(HarcacheError, match=f"EPAM-Net could not join its streams: .*{message}"):
        _run(network, _with(params, **changed), demo)


def test_a_split_without_clips_fails(demo: Workspace, params: DatasetParams) -> None:
    # The tiny demo has one camera, whose clips are X-View's test.
    with pytest.raises(
        HarcacheError, match="demo has no labelled clips in the train split of 'xview'; check"
    ):
        _run("pose", _with(params, protocol="xview"), demo)


def _flag_change(workspace: Workspace, clip: str) -> None:
    """Make the crop stage's table say that someone of the clip is suddenly elsewhere."""
    with workspace.crops.open(newline="") as file:
        columns, *rows = csv.reader(file)
    values = {"changes": "1", "seen": "1.0", "flags": "identity_change"}
    for row in rows:
        if row[0] == clip:
            row[:] = [values.get(column, value) for column, value in zip(columns, row, strict=True)]
    with workspace.crops.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def test_flagged_clips_are_left_out_of_training_on_request_and_never_of_testing(
    own_demo: Workspace, params: DatasetParams, capsys: pytest.CaptureFixture[str]
) -> None:
    assert params.train is not None
    train, test = (split_clips(own_demo, params.train, split) for split in ("train", "test"))
    for clip in (train[0], test[0]):
        _flag_change(own_demo, clip.id)
    assert split_clips(own_demo, params.train, "train") == train
    strict = replace(params.train, sample=replace(params.train.sample, exclude=("nobody", "identity_change")))
    assert split_clips(own_demo, strict, "train") == train[1:]
    assert "1 of 4 training clips left out: nobody, identity_change" in capsys.readouterr().err
    assert split_clips(own_demo, strict, "test") == test


def test_flags_that_the_table_does_not_have_are_asked_for(own_demo: Workspace, params: DatasetParams) -> None:
    assert params.train is not None
    rows = own_demo.crops.read_text().splitlines()
    own_demo.crops.write_text("".join(",".join(row.split(",")[:7]) + "\n" for row in rows))
    strict = replace(params.train, sample=replace(params.train.sample, exclude=("nobody",)))
    with pytest.raises(
        HarcacheError, match=r"crops\.csv has no flags, .*sample\.exclude asks for; run the crop"
    ):
        split_clips(own_demo, strict, "train")


def test_clips_that_a_store_lacks_are_not_trained_on(own_demo: Workspace, params: DatasetParams) -> None:
    assert params.train is not None
    clips = read_manifest(own_demo.manifest)
    write_manifest(own_demo.manifest, [*clips, replace(clips[0], id="S001C001P001R002A005")])
    assert len(split_clips(own_demo, params.train, "train")) == 4


@pytest.mark.parametrize("missing", ["pose", "rgb"])
def test_epam_net_without_a_stream_says_which(
    trained: Workspace, own_demo: Workspace, params: DatasetParams, missing: str
) -> None:
    there = "rgb" if missing == "pose" else "pose"
    own_demo.training(there).parent.mkdir()
    own_demo.training(there).symlink_to(trained.training(there))
    with pytest.raises(
        HarcacheError, match=rf"no checkpoint .*training/{missing}/network\.pt; train it first"
    ):
        _run("epam", params, own_demo)


def test_a_store_that_is_not_there_is_named(own_demo: Workspace, params: DatasetParams) -> None:
    (own_demo.rgb / "zarr.json").unlink()
    with pytest.raises(HarcacheError, match=r"rgb\.zarr: no store here; run the stage that makes it"):
        _run("pose", params, own_demo)

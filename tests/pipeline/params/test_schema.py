import dataclasses
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import (
    AmfiParams,
    DatasetParams,
    FolderIndexParams,
    ImportedPoseParams,
    KinectPoseParams,
    ModelParams,
    NtuIndexParams,
    RecipeParams,
    TrainParams,
    dataset_names,
    from_mapping,
    load_params,
    to_mapping,
)
from harcache.pipeline.params.networks import AMFI_NETWORKS, EPAM_NETWORKS, NETWORKS, WHOLE_NETWORKS

ROOT = Path(__file__).parents[3]
RECIPE = {"epochs": 2, "batch_size": 4, "lr": 0.05, "precision": "float32"}
SECTIONS: dict[str, Any] = {
    "index": {"layout": "demo"},
    "detect": {
        "backend": "ultralytics",
        "weights": "demo-yolo",
        "image_size": 256,
        "score": 0.25,
        "nms_iou": 0.45,
        "max_persons": 4,
        "precision": "float32",
    },
    "pose": {
        "backend": "mmpose",
        "config": "demo-hrnet",
        "weights": "demo-hrnet",
        "flip_test": False,
        "max_persons": 2,
        "precision": "bfloat16",
    },
    "crop": {"min_score": 0.3},
    "frames": {"max_frames": None},
    "heatmap": {"shard_rows": 4096},
    "rgb": {"shard_rows": 4096},
}
TRAINING = {
    "protocol": "xsub",
    "seed": 0,
    "sample": {},
    "model": {},
    "pose": {**RECIPE},
    "rgb": {**RECIPE},
    "epam": {**RECIPE},
}


def _load(tmp_path: Path, key: str = "", value: Any = None, *, remove: bool = False) -> DatasetParams:
    """Load the parameters above with the one at the dotted ``key`` set or removed."""
    sections = yaml.safe_load(yaml.safe_dump({**SECTIONS, "train": TRAINING}))
    if key:
        *parents, last = key.split(".")
        section = sections
        for parent in parents:
            section = section.setdefault(parent, {})
        section.pop(last) if remove else section.__setitem__(last, value)
    path = tmp_path / "params.yaml"
    training = sections.pop("train")
    path.write_text(
        yaml.safe_dump({"datasets": {"demo": sections, "ntu60": sections}, "training": {"demo": training}})
    )
    return load_params(path, dataset="demo")


def test_parameters_arrive_with_their_types_and_the_papers_defaults(tmp_path: Path) -> None:
    params = _load(tmp_path, "train.model.rgb_blocks", [1, 2])
    assert params.name == "demo"
    assert params.frames.max_frames is None
    assert params.train.model.rgb_blocks == (1, 2)
    assert params.train.model.pose_blocks == (5, 11, 7)
    assert (params.train.sample.clip_len, params.train.sample.rgb_frames) == (48, 16)
    assert (params.heatmap.size, params.heatmap.sigma, params.rgb.size) == (56, 0.6, 224)
    assert hash(params) == hash(dataclasses.replace(params))
    assert dataset_names(tmp_path / "params.yaml") == ["demo", "ntu60"]


def test_a_whole_number_is_taken_where_a_number_is_asked(tmp_path: Path) -> None:
    score = _load(tmp_path, "detect.score", 1).detect.score
    assert score == 1.0 and type(score) is float


def test_the_fingerprint_follows_the_values_alone(tmp_path: Path) -> None:
    plain = _load(tmp_path)
    assert _load(tmp_path, "crop.padding", 0.25).fingerprint == plain.fingerprint
    changed = _load(tmp_path, "crop.padding", 0.5)
    assert changed.crop.fingerprint != plain.crop.fingerprint
    assert changed.fingerprint != plain.fingerprint
    assert changed.pose.fingerprint == plain.pose.fingerprint


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("detect.scroe", 0.5, "datasets.demo.detect.scroe is no parameter of .*. Did you mean 'score'?"),
        ("pse", {}, "datasets.demo.pse is no parameter. Did you mean 'pose'?"),
        ("name", "x", "datasets.demo.name is no parameter."),
        ("detect.score", "high", "datasets.demo.detect.score is 'high': expected a number"),
        ("train.rgb.lr", "1e-4", r"training.demo.rgb.lr is '1e-4': .*write 1e-4 as 1.0e-4"),
        ("detect.score", 1.5, "datasets.demo.detect.score is 1.5: expected a number from 0 to 1"),
        ("detect.score", float("nan"), "datasets.demo.detect.score is nan: expected a number"),
        (
            "detect.image_size",
            0,
            "image_size is 0: expected a whole number of 1 or more",
        ),
        ("detect.image_size", 640.0, "datasets.demo.detect.image_size is 640.0: expected a whole number"),
        ("detect.image_size", True, "datasets.demo.detect.image_size is True: expected a whole number"),
        ("pose.flip_test", 1, "datasets.demo.pose.flip_test is 1: expected true or false"),
        ("index.layout", 5, "datasets.demo.index.layout is 5. Known: demo, folder, ntu120, "),
        ("index.layout", "foldr", "datasets.demo.index.layout is 'foldr'. Did you mean 'folder'?"),
        (
            "index",
            {"layout": "ntu60", "test_ratio": 0.3},
            "datasets.demo.index.test_ratio is no parameter of the layout 'ntu60', only of folder: remove it",
        ),
        (
            "index.missing_skeletons",
            "x",
            "is no parameter of the layout 'demo', only of ntu120, ntu60: remove",
        ),
        ("index.tabel", "x", r"index.tabel is no parameter of the layout 'demo'. Known: layout\."),
        ("detect.backend", "ultralitics", "backend is 'ultralitics'. Did you mean 'ultralytics'?"),
        ("detect.backend", ["a"], r"backend is \['a'\]. Known: boxes, none, torchvision, ultralytics."),
        ("train.model.rgb_blocks", 3, "rgb_blocks is 3: expected a list"),
        ("train.model.rgb_blocks", [3, "x"], r"rgb_blocks\[1\] is 'x': expected a whole number"),
        ("frames.max_frames", 0, "max_frames is 0: expected a whole number of 1 or more"),
        ("crop", [], r"datasets.demo.crop is \[\]: expected a mapping"),
        ("detect", [], r"datasets.demo.detect is \[\]: expected a mapping"),
        ("pose.source", "poses.h5", "pose.source is no parameter of the backend 'mmpose'"),
        ("pose.backend", "import", "pose.config is no parameter of the backend 'import'"),
        (
            "detect",
            {"backend": "none"},
            "datasets.demo.detect.backend is 'none', but pose.backend 'mmpose' needs boxes",
        ),
    ],
)
def test_a_wrong_key_or_value_fails_and_is_named_in_full(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    with pytest.raises(HarcacheError, match=message):
        _load(tmp_path, key, value)


@pytest.mark.parametrize("key", ["heatmap", "detect.weights", "frames.max_frames"])
def test_a_missing_key_fails_and_is_named_in_full(tmp_path: Path, key: str) -> None:
    with pytest.raises(HarcacheError, match=f"datasets.demo.{key} is missing"):
        _load(tmp_path, key, remove=True)


@pytest.mark.parametrize("name", ["sample", "model"])
def test_a_section_that_dvc_asks_for_is_missed_before_any_stage_runs(tmp_path: Path, name: str) -> None:
    with pytest.raises(HarcacheError, match=f"training.demo.{name} is missing.*`{name}: {{}}` takes its"):
        _load(tmp_path, f"train.{name}", remove=True)


def test_dvc_asks_for_no_key_that_params_yaml_may_leave_out() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    kinds = {"datasets": DatasetParams, "training": TrainParams, "amfi": AmfiParams}
    asked = {key for stage in stages.values() for key in stage.get("do", stage).get("params", ())}
    # The streams of a network are one stage; what each is asked for is a recipe.
    networks = {"training": ("pose", "rgb"), "amfi": ("skeleton", "resnet")}
    asked = {
        key.replace("${item.network}", network)
        for key in asked
        for network in networks.get(key.partition(".")[0], ("",))
    }
    assert len(asked) > 20
    for key in asked:
        section, _, *names = re.sub(r"\$\{.*?\}", "name", key).split(".")
        keys = {one.name: one for one in dataclasses.fields(kinds[section])}
        assert not names or keys[names[0]].default is dataclasses.MISSING


def test_the_networks_are_the_runs_that_params_yaml_describes() -> None:
    for kind, names in ((TrainParams, EPAM_NETWORKS), (AmfiParams, AMFI_NETWORKS)):
        hints = get_type_hints(kind)
        runs = [one.name for one in dataclasses.fields(kind) if issubclass(hints[one.name], RecipeParams)]
        assert tuple(runs) == names
    assert (*EPAM_NETWORKS, *AMFI_NETWORKS) == NETWORKS and {"epam", "amfi"} == {*WHOLE_NETWORKS}


def test_poses_that_are_there_take_no_networks_parameters(tmp_path: Path) -> None:
    kinect = _load(tmp_path, "pose", {"backend": "kinect", "source": "skeletons", "max_persons": 2}).pose
    assert kinect == KinectPoseParams("kinect", "skeletons", 2, keep_missing=False)
    imported = _load(tmp_path, "pose", {"backend": "import", "source": "mine.h5", "max_persons": 2}).pose
    assert imported == ImportedPoseParams("import", "mine.h5", 2)


def test_parameters_come_back_from_plain_values(tmp_path: Path) -> None:
    index = {"layout": "folder", "table": "t.csv", "test_subjects": [1, 2]}
    params = _load(tmp_path, "index", index)
    assert params.index == FolderIndexParams("folder", "t.csv", test_subjects=(1, 2))
    assert from_mapping(to_mapping(params)) == params


def test_plain_values_of_earlier_versions_hold_the_options_of_all_layouts(tmp_path: Path) -> None:
    params = _load(tmp_path, "index", {"layout": "ntu60", "missing_skeletons": "list.txt"})
    written = to_mapping(params)
    written["index"] |= {"table": None, "test_ratio": 0.2, "seed": 0, "val_ratio": 0.0, "test_subjects": []}
    assert from_mapping(written).index == NtuIndexParams("ntu60", "list.txt")
    with pytest.raises(HarcacheError, match=r"index\.tabel is no parameter of the layout 'ntu60'"):
        from_mapping(written | {"index": written["index"] | {"tabel": None}})


def test_a_section_without_a_backend_fails(tmp_path: Path) -> None:
    with pytest.raises(HarcacheError, match=r"datasets\.demo\.pose\.backend is missing"):
        _load(tmp_path, "pose.backend", remove=True)


def test_an_unknown_dataset_fails_with_the_nearest_name(tmp_path: Path) -> None:
    _load(tmp_path)
    with pytest.raises(HarcacheError, match=r"has no dataset 'ntu6'\. Did you mean 'ntu60'?"):
        load_params(tmp_path / "params.yaml", dataset="ntu6")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: [", "is not YAML"),
        ("detect: {}", "has no mapping 'datasets'"),
        ("datasets: [demo]", "has no mapping 'datasets'"),
        ("datasets: {../demo: {}}", "dataset name '../demo'"),
    ],
)
def test_a_file_that_is_no_parameter_file_fails(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(HarcacheError, match=message):
        load_params(tmp_path / "params.yaml", dataset="../demo")


def test_a_missing_file_fails(tmp_path: Path) -> None:
    with pytest.raises(HarcacheError, match="is missing; change to your project's folder"):
        load_params(tmp_path / "params.yaml", dataset="demo")


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_is_a_training_section_as_it_stands(tmp_path: Path, preset: Path) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    training = yaml.safe_load(preset.read_text())["training"]
    assert list(training) == [preset.stem]
    content["datasets"][preset.stem] = content["datasets"]["demo"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content | {"training": training}))
    train = load_params(tmp_path / "params.yaml", dataset=preset.stem).train
    assert train is not None
    papers = {"pose": (240, 96, 0.0375), "rgb": (200, 64, 0.05), "epam": (10, 24, 0.001)}
    for network, (epochs, batch, rate) in papers.items():
        recipe = getattr(train, network)
        assert (recipe.epochs, recipe.batch_size, recipe.scaled_lr) == (epochs, batch, pytest.approx(rate))
        assert (recipe.momentum, recipe.weight_decay, recipe.clip_norm, recipe.flip) == (0.9, 3e-4, 40, 0.5)
    assert train.model == ModelParams() and (train.pose.crop, train.sample.clip_len) == (0.56, 48)


@pytest.mark.parametrize(
    ("name", "protocols", "graph"), [("ntu60", ("xsub", "xview"), "ntu25"), ("utd_mhad", ("xsub",), "coco17")]
)
def test_a_preset_of_amfi_net_is_the_papers_two_steps(
    tmp_path: Path, name: str, protocols: tuple[str, ...], graph: str
) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    preset = yaml.safe_load((ROOT / "presets" / "amfi" / f"{name}.yaml").read_text())
    assert list(preset) == ["amfi"] and list(preset["amfi"]) == [name]
    content["datasets"][name] = content["datasets"]["demo"]
    for protocol in protocols:
        preset["amfi"][name]["protocol"] = protocol
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content | preset))
        amfi = load_params(tmp_path / "params.yaml", dataset=name).amfi
        assert amfi is not None and (amfi.protocol, amfi.model.graph) == (protocol, graph)
    assert (amfi.sample.rgb_frames, amfi.sample.rgb_size) == (16, 112)
    for stream in (amfi.skeleton, amfi.resnet):
        assert (stream.scaled_lr, stream.weight_decay) == (0.1, 5e-4)
    fusion = amfi.amfi
    assert (fusion.epochs, fusion.scaled_lr, fusion.lr_drops, fusion.gate_weight) == (6, 0.01, (3,), 1.5)


def test_a_wrong_key_of_amfi_net_is_named_in_full(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    section = yaml.safe_load((ROOT / "presets" / "amfi" / "ntu60.yaml").read_text())["amfi"]["ntu60"]
    for key, value, message in (
        ("graph", "ntu", r"amfi\.demo\.model\.graph is 'ntu'. Did you mean 'ntu25'\?"),
        ("width", 8, r"amfi\.demo\.model\.width is no parameter"),
    ):
        wrong = section | {"model": {key: value}}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content | {"amfi": {"demo": wrong}}))
        with pytest.raises(HarcacheError, match=message):
            load_params(tmp_path / "params.yaml", dataset="demo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "datasets: {2024: {}}",
            r"datasets has a name that YAML reads as 2024 \(int\), not as text; write it",
        ),
        ("datasets: {demo: {}, 1.5: {}}", r"reads as 1\.5 \(float\), not as text; write it in quotes"),
        ("datasets: {on: {}}", r"reads as True \(bool\)"),
        ("datasets: {2024-05-01: {}}", r"reads as datetime\.date\(2024, 5, 1\) \(date\)"),
        ("datasets: {~: {}}", r"reads as None \(NoneType\)"),
        ("datasets: {1e3: {}}", "has the name '1e3', which DVC reads as a number; choose a name"),
        ("datasets: {demo: {}}\ntraining: {2024: {}}", r"training has a name that YAML reads as 2024"),
    ],
)
def test_a_name_that_yaml_does_not_read_as_text_is_refused_by_name(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(HarcacheError, match=message):
        load_params(tmp_path / "params.yaml", dataset="2024" if "training" not in text else "demo")


def test_a_name_of_digits_in_quotes_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"datasets": {"2024": SECTIONS}}))
    assert load_params(tmp_path / "params.yaml", dataset="2024").name == "2024"

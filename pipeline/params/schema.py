"""Every number that a result depends on, read once from params.yaml and checked against the types below.

The dataclasses are the schema: a wrong key or value is an error that names the whole key. What a result
does not depend on (folders, workers, devices) comes from the command line and is not here.
"""

import json
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from harcache.pipeline.base.errors import HarcacheError, did_you_mean
from harcache.pipeline.base.fingerprints import fingerprint

__all__ = [
    "AmfiModelParams",
    "AmfiParams",
    "AmfiSampleParams",
    "CropParams",
    "DatasetParams",
    "DetectParams",
    "EvaluateParams",
    "FramesParams",
    "FusionRecipeParams",
    "GivenBoxesParams",
    "HeatmapParams",
    "ImportedPoseParams",
    "IndexParams",
    "KinectPoseParams",
    "ModelParams",
    "NoDetectParams",
    "PoseParams",
    "Precision",
    "QualityFlag",
    "RecipeParams",
    "RgbParams",
    "SampleParams",
    "TrainParams",
    "dataset_names",
    "from_mapping",
    "load_params",
    "to_mapping",
]


@dataclass(frozen=True)
class _Range:
    low: float
    high: float = float("inf")

    def __str__(self) -> str:
        return f" of {self.low} or more" if self.high == float("inf") else f" from {self.low} to {self.high}"


_Count = Annotated[int, _Range(1)]
_Natural = Annotated[int, _Range(0)]
_Fraction = Annotated[float, _Range(0, 1)]
_Positive = Annotated[float, _Range(1e-9)]
_NotNegative = Annotated[float, _Range(0)]
Precision = Literal["float32", "bfloat16", "float16"]
QualityFlag = Literal["nobody", "low_confidence", "whole_image", "outside", "identity_change", "rarely_seen"]
"""What may be wrong with a clip's persons and poses; the crop stage's table says it."""

_Section = TypeVar("_Section")


class _Params:
    @property
    def fingerprint(self) -> str:
        """Stands for all values of the section."""
        assert is_dataclass(self)
        return fingerprint(asdict(self))


@dataclass(frozen=True)
class IndexParams(_Params):
    """How videos become clips; paths are relative to the dataset's folder of videos.

    ``missing_skeletons`` (ntu60, ntu120) is a list of samples to leave out. The others are for folder:
    ``table`` is a CSV file of path, label and more; where it has no column split, ``test_subjects`` and
    ``val_subjects`` or the ratios choose. Videos whose paths match ``group_pattern`` alike stay together.
    """

    layout: str
    table: str | None = None
    test_ratio: _Fraction = 0.2
    seed: _Natural = 0
    missing_skeletons: str | None = None
    val_ratio: _Fraction = 0.0
    test_subjects: tuple[_Natural, ...] = ()
    val_subjects: tuple[_Natural, ...] = ()
    group_pattern: str | None = None


@dataclass(frozen=True)
class DetectParams(_Params):
    """The person detector; ``image_size`` is pixels of the longer side.

    It looks at ``every`` so many frames, and between them persons move in straight lines.
    """

    backend: Literal["ultralytics", "torchvision"]
    weights: str
    image_size: _Count
    score: _Fraction
    nms_iou: _Fraction
    max_persons: _Count
    precision: Precision
    every: _Count = 1

    @property
    def fingerprint(self) -> str:
        """Stands for all values; the same as before there was ``every`` where every frame is looked at."""
        values = asdict(self)
        if self.every == 1:
            del values["every"]
        return fingerprint(values)


@dataclass(frozen=True)
class GivenBoxesParams(_Params):
    """Boxes that are there already: ``source`` is a CSV or JSON file, see `stages.persons.given_boxes`."""

    backend: Literal["boxes"]
    source: str


@dataclass(frozen=True)
class NoDetectParams(_Params):
    """No detector: no clip has boxes. For poses that are brought along."""

    backend: Literal["none"]


@dataclass(frozen=True)
class PoseParams(_Params):
    """The pose estimator; at most ``max_persons`` are kept a clip."""

    backend: Literal["mmpose", "ultralytics"]
    config: str
    weights: str
    flip_test: bool
    max_persons: _Count
    precision: Precision


@dataclass(frozen=True)
class ImportedPoseParams(_Params):
    """Poses that are there already: ``source`` is a file that `harcache poses import` wrote."""

    backend: Literal["import"]
    source: str
    max_persons: _Count


@dataclass(frozen=True)
class KinectPoseParams(_Params):
    """Kinect's skeletons: ``source`` is the folder of NTU's ``.skeleton`` or UTD-MHAD's ``.mat`` files.

    ``keep_missing``: also take the clips that a list of missing skeletons in that folder names.
    """

    backend: Literal["kinect"]
    source: str
    max_persons: _Count
    keep_missing: bool = False


@dataclass(frozen=True)
class CropParams(_Params):
    """The square box of a clip: the persons' box, its half extents enlarged by the part ``padding``.

    What leaves the image is cut off ("clip") or filled ("pad"). Keypoints under ``min_score`` don't count.
    A quarter and "clip" are what the paper's authors released.
    """

    min_score: _Fraction
    padding: _NotNegative = 0.25
    fit: Literal["clip", "pad"] = "clip"


@dataclass(frozen=True)
class FramesParams(_Params):
    """Frames stored of a clip: all (None), or at most ``max_frames``, evenly spread."""

    max_frames: _Count | None


@dataclass(frozen=True)
class HeatmapParams(_Params):
    """Pose heatmaps: 56 pixels and a sigma of 0.6 pixels are the paper's."""

    shard_rows: _Count
    size: _Count = 56
    sigma: _Positive = 0.6


@dataclass(frozen=True)
class RgbParams(_Params):
    """RGB crops: 224 pixels are the paper's; JPEG of quality 95 is off by 0.9 grey levels on average."""

    shard_rows: _Count
    size: _Count = 224
    codec: Literal["jpeg", "zstd"] = "jpeg"
    quality: Annotated[int, _Range(1, 100)] = 95


@dataclass(frozen=True)
class SampleParams(_Params):
    """Frames of a sample: the paper's 48 poses, of which every third has its RGB frame.

    ``heatmaps``: read from the cached volume, or drawn on the device from the cached keypoints.
    Training leaves out clips with a flag of ``exclude``; testing never does, so that figures stay comparable.
    """

    clip_len: _Count = 48
    rgb_frames: _Count = 16
    heatmaps: Literal["volume", "keypoints"] = "volume"
    exclude: tuple[QualityFlag, ...] = ()


@dataclass(frozen=True)
class ModelParams(_Params):
    """The networks' sizes: the defaults are the paper's EPAM-Net."""

    width: _Count = 24
    rgb_blocks: tuple[_Count, ...] = (3, 5, 11, 7)
    pose_blocks: tuple[_Count, ...] = (5, 11, 7)
    attention: str = "nested"
    dropout: _Fraction = 0.5


@dataclass(frozen=True)
class RecipeParams(_Params):
    """One training run: SGD with a cosine schedule; the defaults are the paper's for every stream.

    ``batch_size``: samples of a step, of all processes together. ``lr`` is for steps of ``base_batch``
    samples (None: of ``batch_size``) and scales with their number. ``accumulate``: parts that each process
    does its share of a step in. ``lr_drops``: epochs after which the rate is a tenth, in place of the cosine.
    ``crop``: least area of random crops of keypoints. ``init``: a checkpoint to start from. ``patience``: end
    after so many tests without a better top-1.
    """

    epochs: _Count
    batch_size: _Count
    lr: _Positive
    precision: Precision
    momentum: _Fraction = 0.9
    weight_decay: _NotNegative = 3e-4
    clip_norm: _Positive = 40.0
    flip: _Fraction = 0.5
    base_batch: _Count | None = None
    accumulate: _Count = 1
    lr_drops: tuple[_Count, ...] | None = None
    crop: _Fraction | None = None
    init: str | None = None
    patience: _Count | None = None

    @property
    def scaled_lr(self) -> float:
        """The learning rate of a step of ``batch_size`` samples."""
        return self.lr if self.base_batch is None else self.lr * self.batch_size / self.base_batch


@dataclass(frozen=True)
class EvaluateParams(_Params):
    """The evaluation: ``clips`` samples of each clip, their scores averaged."""

    clips: _Count = 1


@dataclass(frozen=True)
class TrainParams(_Params):
    """The three runs of EPAM-Net: pose stream, RGB stream, then the whole network from both.

    All of them learn the labels of ``protocol`` and are tested on its test split.
    """

    KEY: ClassVar[str] = "training"  # of params.yaml

    protocol: str
    seed: _Natural
    pose: RecipeParams
    rgb: RecipeParams
    epam: RecipeParams
    sample: SampleParams
    model: ModelParams
    evaluate: EvaluateParams = EvaluateParams()


@dataclass(frozen=True)
class AmfiSampleParams(_Params):
    """Frames of a sample: ``clip_len`` skeletons, of which every so many have their RGB frame.

    Frames are scaled to ``rgb_size`` pixels where the store's are larger; 16 frames of 112 are the paper's.
    Training leaves out clips with a flag of ``exclude``.
    """

    clip_len: _Count = 64
    rgb_frames: _Count = 16
    # Of frames under 32 pixels ResNet3D leaves one value, which no batch normalisation takes.
    rgb_size: Annotated[int, _Range(32)] = 112
    exclude: tuple[QualityFlag, ...] = ()


@dataclass(frozen=True)
class AmfiModelParams(_Params):
    """What is left to choose of AMFI-Net: ``graph`` names the skeletons' joints.

    coco17: the cached keypoints; ntu25: Kinect's joints in space, where the dataset's poses are NTU's.
    ``dropout`` is the skeleton stream's; the fusion's squeeze is ``reduction`` times narrower than its input.
    """

    graph: Literal["coco17", "ntu25"] = "coco17"
    dropout: _Fraction = 0.5
    reduction: _Count = 16


@dataclass(frozen=True)
class FusionRecipeParams(RecipeParams):
    """The run that trains the fusion alone, on both streams as they are: keys as in skeleton and resnet.

    The loss is the cross-entropy and ``gate_weight`` (the paper's lambda) times the gate's own term.
    """

    gate_weight: _NotNegative = 1.5


@dataclass(frozen=True)
class AmfiParams(_Params):
    """The three runs of AMFI-Net: skeleton stream (AGCN), RGB stream (ResNet3D-18), then their fusion.

    All of them learn the labels of ``protocol`` and are tested on its test split.
    """

    KEY: ClassVar[str] = "amfi"  # of params.yaml

    protocol: str
    seed: _Natural
    skeleton: RecipeParams
    resnet: RecipeParams
    amfi: FusionRecipeParams
    sample: AmfiSampleParams
    model: AmfiModelParams
    evaluate: EvaluateParams = EvaluateParams()


@dataclass(frozen=True)
class DatasetParams(_Params):
    """All parameters of one dataset: ``datasets.<name>`` of params.yaml.

    ``train`` is ``training.<name>`` and ``amfi`` is ``amfi.<name>``, each None where that is not there: with
    neither, the dataset is extracted only.
    """

    name: str
    index: IndexParams
    detect: DetectParams | GivenBoxesParams | NoDetectParams
    pose: PoseParams | ImportedPoseParams | KinectPoseParams
    crop: CropParams
    frames: FramesParams
    heatmap: HeatmapParams
    rgb: RgbParams
    train: TrainParams | None = None
    amfi: AmfiParams | None = None

    def __post_init__(self) -> None:
        if isinstance(self.detect, NoDetectParams) and isinstance(self.pose, PoseParams):
            raise HarcacheError(
                f"datasets.{self.name}.detect.backend is 'none', but pose.backend '{self.pose.backend}' "
                "needs boxes: choose a detector, or poses that are there already (import, kinect)"
            )
        for network in ("skeleton", "resnet", "amfi"):
            if self.amfi is not None and getattr(self.amfi, network).crop is not None:
                raise HarcacheError(
                    f"amfi.{self.name}.{network}.crop is set, but only heatmaps are drawn from random crops; "
                    "leave it out"
                )


# Of DatasetParams, the fields that come from mappings of their own.
_NETWORKS: Mapping[str, type[TrainParams | AmfiParams]] = {"train": TrainParams, "amfi": AmfiParams}


def dataset_names(path: Path | str = "params.yaml") -> list[str]:
    """Return the names under ``datasets`` in the order of the file."""
    return list(_read_mapping(Path(path), "datasets"))


def load_params(path: Path | str = "params.yaml", *, dataset: str) -> DatasetParams:
    """Read the parameters of ``dataset``.

    Raises HarcacheError for a file that is missing or not YAML, an unknown dataset, and for an unknown,
    missing or mistyped key, which is named in full and with the nearest right name.
    """
    datasets = _read_mapping(Path(path), "datasets")
    if dataset not in datasets:
        raise HarcacheError(f"{path} has no dataset '{dataset}'. {did_you_mean(dataset, datasets)}".rstrip())
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", dataset):
        raise HarcacheError(f"dataset name {dataset!r}: expected letters, digits, '_' and '-' only")
    networks = {
        field: _read_mapping(Path(path), kind.KEY, needed=False).get(dataset)
        for field, kind in _NETWORKS.items()
    }
    return _parse_dataset(dataset, datasets[dataset], networks)


def to_mapping(params: DatasetParams) -> dict[str, Any]:
    """Return all parameters of a dataset as plain values, which a file that JSON or YAML writes can hold."""
    return json.loads(json.dumps(asdict(params)))


def from_mapping(content: Mapping[str, Any]) -> DatasetParams:
    """Return the parameters that `to_mapping` took apart; checked as `load_params` checks a file's."""
    sections = {key: value for key, value in content.items() if key not in ("name", *_NETWORKS)}
    networks = {field: content.get(field) for field in _NETWORKS}
    return _parse_dataset(str(content.get("name")), sections, networks)


def _parse_dataset(name: str, sections: Any, networks: Mapping[str, Any]) -> DatasetParams:
    given: dict[str, Any] = {"name": name}
    for field, kind in _NETWORKS.items():
        section = networks[field]
        given[field] = None if section is None else _parse_section(kind, section, f"{kind.KEY}.{name}")
    return _parse_section(DatasetParams, sections, f"datasets.{name}", given)


def _read_mapping(path: Path, key: str, needed: bool = True) -> dict[str, Any]:
    if not path.is_file():
        raise HarcacheError(f"{path} is missing; run in the project's folder, where dvc.yaml lies")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise HarcacheError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    found = content.get(key) if isinstance(content, dict) else None
    if found is None and not needed:
        return {}
    if not isinstance(found, dict):
        raise HarcacheError(f"{path} has no mapping '{key}'; expected one entry a dataset")
    return {str(name): section for name, section in found.items()}


def _parse_section(
    kind: type[_Section], value: Any, key: str, given: Mapping[str, Any] | None = None
) -> _Section:
    given = given or {}
    if not isinstance(value, dict):
        raise _mistyped(key, value, "a mapping")
    known = {f.name: f for f in fields(kind) if f.name not in given}  # type: ignore[arg-type]
    for name in value:
        if name not in known:
            backend = f" of the backend '{value['backend']}'" if "backend" in known else ""
            raise HarcacheError(f"{key}.{name} is no parameter{backend}. {did_you_mean(str(name), known)}")
    hints = get_type_hints(kind, include_extras=True)
    for name, its_field in known.items():
        if name not in value and its_field.default is MISSING:
            hint = _defaults_of(hints[name], name)
            raise HarcacheError(f"{key}.{name} is missing; add it to params.yaml{hint}")
    return kind(**given, **{name: _parse(hints[name], value[name], f"{key}.{name}") for name in value})


def _defaults_of(kind: Any, name: str) -> str:
    """Return how to ask for a section's defaults, where all its keys have one: DVC wants the key itself."""
    optional = is_dataclass(kind) and all(one.default is not MISSING for one in fields(kind))
    return f"; `{name}: {{}}` takes its defaults" if optional else ""


def _parse(kind: Any, value: Any, key: str) -> Any:
    """Return ``value`` as ``kind``: a plain type, Literal, Annotated range, optional, tuple or dataclass."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        number = _parse(arguments[0], value, key)
        if not arguments[1].low <= number <= arguments[1].high:
            raise HarcacheError(f"{key} is {value}: expected {_describe(arguments[0])}{arguments[1]}")
        return number
    if origin in (Union, types.UnionType):
        if is_dataclass(arguments[0]):
            return _parse(_section_of_backend(arguments, value, key), value, key)
        return None if value is None else _parse(arguments[0], value, key)
    if origin is tuple:
        if not isinstance(value, list):
            raise _mistyped(key, value, "a list")
        return tuple(_parse(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise HarcacheError(f"{key} is {value!r}. {did_you_mean(str(value), arguments)}")
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return _parse_section(kind, value, key)
    return _parse_plain(kind, value, key)


def _section_of_backend(kinds: tuple[Any, ...], value: Any, key: str) -> Any:
    """Return which of ``kinds`` has the backend that ``value`` names."""
    if not isinstance(value, dict):
        raise _mistyped(key, value, "a mapping")
    if "backend" not in value:
        raise HarcacheError(f"{key}.backend is missing; add it to params.yaml")
    known = {name: kind for kind in kinds for name in get_args(get_type_hints(kind)["backend"])}
    name = _parse(Literal[*known], value["backend"], f"{key}.backend")
    return known[name]


def _parse_plain(kind: type, value: Any, key: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    # bool is an int to Python, but never one to the writer of params.yaml.
    if type(value) is not kind:
        raise _mistyped(key, value, _describe(kind))
    return value


def _mistyped(key: str, value: Any, expected: str) -> HarcacheError:
    # YAML 1.1 takes a number without a point, such as 1e-4, for text.
    hint = " (write 1e-4 as 1.0e-4)" if expected == "a number" and isinstance(value, str) else ""
    return HarcacheError(f"{key} is {value!r}: expected {expected}{hint}")


def _describe(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]

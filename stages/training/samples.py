"""What the networks of a dataset learn from and are tested on: classes, splits and samples of its stores.

Everything here is checked before any work: a wrong protocol or a stale store costs no minute of training.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from harcache import cache
from harcache.cache.streaming.dataset import ClipDataset
from harcache.pipeline.base.errors import HarcacheError, did_you_mean
from harcache.pipeline.base.progress import notice
from harcache.pipeline.clips import Clip, read_classes, read_manifest
from harcache.pipeline.params import DatasetParams, RecipeParams
from harcache.pipeline.params.networks import EPAM_NETWORKS, Network
from harcache.stages.shared.crop_table import read_crops
from harcache.stages.shared.store_parts import store_parameters
from harcache.stages.shared.workspace import Workspace
from harcache.stages.training.inputs import NetworkInputs, Section, inputs_of, section_of

__all__ = [
    "CHECKPOINT",
    "check_skeletons",
    "check_stores",
    "class_names",
    "make_dataset",
    "open_dataset",
    "split_clips",
    "stores_of",
    "training_params",
]

CHECKPOINT = "network.pt"


def training_params(network: Network, params: DatasetParams) -> Section:
    """Return the dataset's parameters for training such a network; HarcacheError where it has none."""
    section = section_of(network, params)
    if section is None:
        key, example = (
            ("training", "the demo's") if network in EPAM_NETWORKS else ("amfi", "presets/amfi has")
        )
        raise HarcacheError(
            f"params.yaml has no {key}.{params.name}; add it, with a protocol and recipes, as {example}"
        )
    return section


def class_names(classes: Mapping[str, list[str]], train: Section, dataset: str) -> list[str]:
    """Return those ``classes`` that are of the protocol; HarcacheError where the dataset lacks it."""
    if train.protocol not in classes:
        raise HarcacheError(
            f"{train.KEY}.{dataset}.protocol is '{train.protocol}', which the dataset lacks. "
            f"{did_you_mean(train.protocol, classes) or 'Its clips have no labels.'}"
        )
    return classes[train.protocol]


def check_stores(params: DatasetParams, workspace: Workspace) -> None:
    """Raise a CacheError that says what differs where a store is of another dataset or other parameters."""
    stores: tuple[tuple[Path, Literal["heatmap", "rgb"]], ...] = (
        (workspace.rgb, "rgb"),
        (workspace.heatmaps, "heatmap"),
    )
    for path, stage in stores:
        if path in stores_of(workspace) or params.index.layout != "poses":
            cache.open(path, {"dataset": workspace.dataset, "parameters": store_parameters(stage, params)})


def stores_of(workspace: Workspace) -> list[Path]:
    """Return the dataset's stores: a dataset of poses alone has no RGB, and its pose stream needs none."""
    return [path for path in (workspace.rgb, workspace.heatmaps) if path != workspace.rgb or path.exists()]


def split_clips(workspace: Workspace, train: Section, split: str) -> list[Clip]:
    """Return the labelled clips of a split that all stores hold.

    Of the split "train", those with a flag of ``train.sample.exclude`` are left out. Raises HarcacheError
    when there are no clips, and for a label that no class has.
    """
    stored = set.intersection(*(set(cache.open(path).ids) for path in stores_of(workspace)))
    clips = [
        clip
        for clip in read_manifest(workspace.manifest)
        if clip.id in stored
        and clip.split(train.protocol) == split
        and clip.label(train.protocol) is not None
    ]
    classes = len(class_names(read_classes(workspace.classes), train, workspace.dataset))
    for clip in clips:
        if (label := _label(clip, train.protocol)) >= classes:
            raise HarcacheError(
                f"clip '{clip.id}' has label {label} in {train.protocol}, of which {workspace.classes} names "
                f"{classes} classes, from 0 to {classes - 1}; run the index stage again"
            )
    if split == "train" and train.sample.exclude:
        clips = _without(train, clips, workspace)
    if not clips:
        raise HarcacheError(
            f"{workspace.dataset} has no labelled clips in the {split} split of '{train.protocol}'; "
            "check its layout and sample.exclude, or choose another protocol"
        )
    return clips


def _without(train: Section, clips: Sequence[Clip], workspace: Workspace) -> list[Clip]:
    crops = read_crops(workspace.crops)
    asks = f"which {train.KEY}.{workspace.dataset}.sample.exclude asks for"
    measured = [crops[clip.id].quality for clip in clips if clip.id in crops]
    if None in measured:
        raise HarcacheError(f"{workspace.crops} has no flags, {asks}; run the crop stage again")
    if not all(quality.tells(train.sample.exclude) for quality in measured if quality):
        raise HarcacheError(
            f"{workspace.crops}, of an earlier version, lacks a flag {asks}; run "
            f"'harcache pose {workspace.dataset}', then 'harcache crop {workspace.dataset}'"
        )
    flagged = {crop.id for crop in crops.values() if {*crop.flags} & {*train.sample.exclude}}
    kept = [clip for clip in clips if clip.id not in flagged]
    notice(
        f"{len(clips) - len(kept)} of {len(clips)} training clips left out: {', '.join(train.sample.exclude)}"
    )
    return kept


def check_skeletons(inputs: NetworkInputs, workspace: Workspace) -> None:
    """Raise HarcacheError where the dataset's poses are not the joints that a network's graph joins."""
    if inputs.joints is None or inputs.poses is None:
        return
    store = cache.open(workspace.heatmaps)
    there = inputs.poses in store.attributes["arrays"]
    joints = store.reader(inputs.poses).row_shape[1] if there else 0
    if joints != inputs.joints:
        found = f"{inputs.poses} of {joints} joints" if there else f"no {inputs.poses}"
        raise HarcacheError(
            f"{workspace.heatmaps} has {found}, expected {inputs.joints}; "
            f"amfi.{workspace.dataset}.model.graph coco17 takes the poses that a network estimated, ntu25 "
            "NTU's Kinect skeletons"
        )


def make_dataset(
    network: Network, workspace: Workspace, train: Section, clips: Sequence[Clip], training: bool
) -> ClipDataset:
    """Open what ``network`` reads: poses, RGB or both; samples are random in training, else fixed."""
    recipe: RecipeParams = getattr(train, network)
    inputs = inputs_of(network, train)
    check_skeletons(inputs, workspace)
    drawn = {"seed": train.seed, "flip": recipe.flip, "crop": recipe.crop}
    return open_dataset(inputs, workspace, clips, train.protocol, training, **drawn)


def open_dataset(
    inputs: NetworkInputs,
    workspace: Workspace,
    clips: Sequence[Clip],
    protocol: str,
    training: bool = False,
    **drawn: Any,
) -> ClipDataset:
    """Open those stores of a dataset that are read; ``drawn`` as `NetworkInputs.dataset` has it."""
    return inputs.dataset(
        [(clip.id, _label(clip, protocol)) for clip in clips],
        cache.open(workspace.rgb) if inputs.rgb else None,
        cache.open(workspace.heatmaps) if inputs.poses else None,
        training,
        **drawn,
    )


def _label(clip: Clip, protocol: str) -> int:
    label = clip.label(protocol)
    assert label is not None
    return label

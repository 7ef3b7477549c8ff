"""What the networks of a dataset learn from and are tested on: classes, splits and samples of its stores.

Everything here is checked before any work: a wrong protocol or a stale store costs no minute of training.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cache
from cache.streaming import Batch, ClipDataset, prepare
from pipeline.clips import Clip, read_classes, read_manifest
from pipeline.errors import HarcacheError, did_you_mean
from pipeline.params import DatasetParams, QualityFlag, RecipeParams, TrainParams
from pipeline.progress import notice
from stages import heatmap as heatmap_stage
from stages import rgb as rgb_stage
from stages.crop import read_crops
from stages.training.networks import Network
from stages.workspace import Workspace

__all__ = [
    "CHECKPOINT",
    "check_stores",
    "class_names",
    "make_dataset",
    "preparation",
    "split_clips",
    "stores_of",
    "training_params",
]

CHECKPOINT = "network.pt"


def training_params(params: DatasetParams) -> TrainParams:
    """Return the dataset's training parameters; HarcacheError where it has none."""
    if params.train is None:
        raise HarcacheError(
            f"params.yaml has no training.{params.name}; add it, with a protocol and recipes, as the demo's"
        )
    return params.train


def class_names(workspace: Workspace, train: TrainParams) -> list[str]:
    """Return the class names of the protocol; HarcacheError where the dataset lacks it."""
    classes = read_classes(workspace.classes)
    if train.protocol not in classes:
        raise HarcacheError(
            f"training.{workspace.dataset}.protocol is '{train.protocol}', which the dataset lacks. "
            f"{did_you_mean(train.protocol, classes) or 'Its clips have no labels.'}"
        )
    return classes[train.protocol]


def check_stores(params: DatasetParams, workspace: Workspace) -> None:
    """Raise a CacheError that says what differs where a store is of another dataset or other parameters."""
    for path, stage in ((workspace.rgb, rgb_stage), (workspace.heatmaps, heatmap_stage)):
        if path in stores_of(workspace) or params.index.layout != "poses":
            cache.open(path, {"dataset": workspace.dataset, "parameters": stage.store_parameters(params)})


def stores_of(workspace: Workspace) -> list[Path]:
    """Return the dataset's stores: a dataset of poses alone has no RGB, and its pose stream needs none."""
    return [path for path in (workspace.rgb, workspace.heatmaps) if path != workspace.rgb or path.exists()]


def split_clips(workspace: Workspace, train: TrainParams, split: str) -> list[Clip]:
    """Return the labelled clips of a split that all stores hold; HarcacheError when there are none.

    Of the split "train", those with a flag of ``train.sample.exclude`` are left out.
    """
    stored = set.intersection(*(set(cache.open(path).ids) for path in stores_of(workspace)))
    clips = [
        clip
        for clip in read_manifest(workspace.manifest)
        if clip.id in stored
        and clip.split(train.protocol) == split
        and clip.label(train.protocol) is not None
    ]
    if split == "train" and train.sample.exclude:
        clips = _without(train.sample.exclude, clips, workspace)
    if not clips:
        raise HarcacheError(
            f"{workspace.dataset} has no labelled clips in the {split} split of '{train.protocol}'; "
            "check its layout and sample.exclude, or choose another protocol"
        )
    return clips


def _without(flags: Sequence[QualityFlag], clips: Sequence[Clip], workspace: Workspace) -> list[Clip]:
    crops = read_crops(workspace.crops)
    if any(crops[clip.id].quality is None for clip in clips if clip.id in crops):
        raise HarcacheError(
            f"{workspace.crops} has no flags, which training.{workspace.dataset}.sample.exclude asks for; "
            "run the crop stage again"
        )
    flagged = {crop.id for crop in crops.values() if {*crop.flags} & {*flags}}
    kept = [clip for clip in clips if clip.id not in flagged]
    notice(f"{len(clips) - len(kept)} of {len(clips)} training clips left out: {', '.join(flags)}")
    return kept


def make_dataset(
    network: Network, workspace: Workspace, train: TrainParams, clips: Sequence[Clip], training: bool
) -> ClipDataset:
    """Open what ``network`` reads: heatmaps, RGB or both; samples are random in training, else fixed."""
    recipe: RecipeParams = getattr(train, network)
    return ClipDataset(
        [(clip.id, _label(clip, train.protocol)) for clip in clips],
        rgb=None if network == "pose" else cache.open(workspace.rgb),
        heatmaps=None if network == "rgb" else cache.open(workspace.heatmaps),
        heatmap_source=train.sample.heatmaps,
        train=training,
        seed=train.seed,
        flip=recipe.flip,
        crop=recipe.crop,
        clip_len=train.sample.clip_len,
        rgb_frames=train.sample.rgb_frames,
        views=1 if training else train.evaluate.clips,
    )


def preparation(params: DatasetParams) -> Callable[..., Batch]:
    """Return ``cache.streaming.prepare`` for heatmaps as the dataset's are."""
    return partial(prepare, heatmap_size=params.heatmap.size, sigma=params.heatmap.sigma)


def _label(clip: Clip, protocol: str) -> int:
    label = clip.label(protocol)
    assert label is not None
    return label

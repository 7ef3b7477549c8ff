"""Train: the pose stream, the RGB stream, then EPAM-Net from both, straight from the stores.

Lightning runs the steps; what is learnt from, in which order, is a pure function of the seed and the epoch.
"""

import csv
import io
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional

import cache
from cache.streaming import Batch, ClipDataset, ClipLoader, prepare
from models.checkpoints import load_network, save_checkpoint
from models.epam_net import EPAMNet
from models.memory import keep_freed_memory
from models.xshiftnet import PoseXShiftNet, RGBXShiftNet
from pipeline.clips import Clip, read_classes, read_manifest
from pipeline.engine import Engine
from pipeline.errors import HarcacheError, did_you_mean
from pipeline.files import write_atomically
from pipeline.params import DatasetParams, RecipeParams, TrainParams, to_mapping
from pipeline.progress import progress
from stages import heatmap as heatmap_stage
from stages import rgb as rgb_stage
from stages.networks import Network, logits_of
from stages.workspace import Workspace

__all__ = [
    "CHECKPOINT",
    "Network",
    "check_stores",
    "class_names",
    "logits_of",
    "make_dataset",
    "preparation",
    "run",
    "split_clips",
    "training_params",
]

CHECKPOINT = "network.pt"
_VALIDATIONS = 6  # times that the curves look at the test split


def run(network: Network, params: DatasetParams, workspace: Workspace, engine: Engine) -> None:
    """Train one network and write its checkpoint and curves into its training folder.

    Training runs in this process, not on the engine's workers. Raises HarcacheError when the dataset has no
    training parameters, protocol, classes or clips, or when the streams of EPAM-Net are not trained yet.
    """
    train = training_params(params)
    recipe: RecipeParams = getattr(train, network)
    classes = class_names(workspace, train)
    check_stores(params, workspace)
    lightning.seed_everything(train.seed, verbose=False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    clips = split_clips(workspace, train, "train")
    tested = split_clips(workspace, train, "test")
    made = _make_network(network, train, len(classes), workspace)
    learner = _Learner(made, recipe, preparation(params))
    loader = _loader(make_dataset(network, workspace, train, clips, True), recipe, workspace)
    check = _loader(make_dataset(network, workspace, train, tested, False), recipe, workspace)
    _fit(learner, loader, check, recipe, f"train {network}", workspace)
    folder = workspace.training(network)
    learner.curves.write(folder / "plots")
    extra = {"protocol": train.protocol, "epochs": recipe.epochs, "params": train.fingerprint}
    # What prediction on other videos needs: how the caches were made, and what a sample is.
    extra |= {"dataset": to_mapping(params)}
    save_checkpoint(folder / CHECKPOINT, learner.network, classes, extra)
    print(f"train {network}: {len(clips)} clips, {recipe.epochs} epochs; {learner.curves.summary()}")


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
        cache.open(path, {"dataset": workspace.dataset, "parameters": stage.store_parameters(params)})


def split_clips(workspace: Workspace, train: TrainParams, split: str) -> list[Clip]:
    """Return the labelled clips of a split that both stores hold; HarcacheError when there are none."""
    stored = set(cache.open(workspace.rgb).ids) & set(cache.open(workspace.heatmaps).ids)
    clips = [
        clip
        for clip in read_manifest(workspace.manifest)
        if clip.id in stored
        and clip.split(train.protocol) == split
        and clip.label(train.protocol) is not None
    ]
    if not clips:
        raise HarcacheError(
            f"{workspace.dataset} has no labelled clips in the {split} split of '{train.protocol}'; "
            "check its layout, or choose another protocol"
        )
    return clips


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
        clip_len=train.sample.clip_len,
        rgb_frames=train.sample.rgb_frames,
        views=1 if training else train.evaluate.clips,
    )


def preparation(params: DatasetParams) -> Callable[..., Batch]:
    """Return ``cache.streaming.prepare`` for heatmaps as the dataset's are."""
    return partial(prepare, heatmap_size=params.heatmap.size, sigma=params.heatmap.sigma)


class _Learner(lightning.LightningModule):
    """The paper's recipe (section 4.2): SGD with momentum, a cosine to zero by step, cross-entropy a head."""

    def __init__(self, network: nn.Module, recipe: RecipeParams, prepare: Callable[..., Batch]) -> None:
        super().__init__()
        self.network = network
        self._prepare = prepare
        self.curves = _Curves()
        self._recipe = recipe

    def training_step(self, batch: Mapping[str, Tensor], number: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Mapping[str, Tensor], number: int) -> None:
        self._step(batch, "test")

    def _step(self, batch: Mapping[str, Tensor], split: str) -> Tensor:
        ready = self._prepare(batch, self.device)
        heads = logits_of(self.network, ready)
        loss = torch.stack([functional.cross_entropy(head, ready["label"]) for head in heads]).sum()
        right = (torch.stack(heads).sum(0).argmax(1) == ready["label"]).float().mean()
        self.curves.add(split, len(ready["label"]), loss.item(), right.item())
        return loss

    def on_validation_epoch_end(self) -> None:
        self.curves.close("test", self.current_epoch + 1)

    def on_train_epoch_end(self) -> None:
        self.curves.close("train", self.current_epoch + 1)

    def configure_optimizers(self) -> Any:
        recipe = self._recipe
        optimizer = torch.optim.SGD(
            self.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


@dataclass
class _Sum:
    clips: int = 0
    loss: float = 0.0
    right: float = 0.0


class _Curves:
    """Loss and accuracy by epoch, of training and of the test split, for `dvc plots`."""

    def __init__(self) -> None:
        self._open: dict[str, _Sum] = defaultdict(_Sum)
        self._rows: list[tuple[int, str, float, float]] = []

    def add(self, split: str, clips: int, loss: float, right: float) -> None:
        running = self._open[split]
        running.clips += clips
        running.loss += loss * clips
        running.right += right * clips

    def close(self, split: str, epoch: int) -> None:
        done = self._open.pop(split)
        self._rows.append((epoch, split, done.loss / done.clips, done.right / done.clips))

    def write(self, folder: Path) -> None:
        for place, name in ((2, "loss"), (3, "accuracy")):
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(("epoch", "split", name))
            writer.writerows((row[0], row[1], f"{row[place]:.5f}") for row in sorted(self._rows))
            write_atomically(folder / f"{name}.csv", text.getvalue().encode())

    def summary(self) -> str:
        last = {split: (loss, right) for _, split, loss, right in sorted(self._rows)}
        return "; ".join(
            f"{split}: loss {loss:.3f}, top-1 {right:.1%}" for split, (loss, right) in last.items()
        )


class _Display(Callback):
    def __init__(self, label: str, steps: int) -> None:
        self._shown = progress(steps, label, unit="steps")

    def on_train_start(self, *_: Any) -> None:
        self._bar = self._shown.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self._bar.advance()

    def on_train_end(self, *_: Any) -> None:
        self._shown.__exit__(None, None, None)

    def on_exception(self, *_: Any) -> None:
        self._shown.__exit__(None, None, None)


def _fit(
    learner: _Learner,
    loader: ClipLoader,
    check: ClipLoader,
    recipe: RecipeParams,
    label: str,
    workspace: Workspace,
) -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    precision: Any = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
    on_gpu = torch.device(workspace.device).type == "cuda"
    if not on_gpu:
        keep_freed_memory()
    trainer = lightning.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=[torch.device(workspace.device).index or 0] if on_gpu else 1,
        precision=precision[recipe.precision],
        max_epochs=recipe.epochs,
        gradient_clip_val=recipe.clip_norm,
        check_val_every_n_epoch=max(1, recipe.epochs // _VALIDATIONS),
        num_sanity_val_steps=0,
        callbacks=[_Display(label, recipe.epochs * len(loader))],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        # The loader has workers of its own, which Lightning's advice does not know.
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(learner, loader, check)


def _make_network(network: Network, train: TrainParams, classes: int, workspace: Workspace) -> nn.Module:
    model = train.model
    if network == "pose":
        return PoseXShiftNet(classes, width=model.width, blocks=model.pose_blocks, dropout=model.dropout)
    if network == "rgb":
        return RGBXShiftNet(classes, width=model.width, blocks=model.rgb_blocks, dropout=model.dropout)
    rgb, _ = load_network(workspace.training("rgb") / CHECKPOINT)
    pose, _ = load_network(workspace.training("pose") / CHECKPOINT)
    assert isinstance(rgb, RGBXShiftNet) and isinstance(pose, PoseXShiftNet)
    return EPAMNet.from_streams(rgb, pose, model.attention, model.dropout, train.sample.rgb_frames)  # type: ignore[arg-type]


def _loader(dataset: ClipDataset, recipe: RecipeParams, workspace: Workspace) -> ClipLoader:
    return ClipLoader(dataset, min(recipe.batch_size, len(dataset)), device=workspace.device)


def _label(clip: Clip, protocol: str) -> int:
    label = clip.label(protocol)
    assert label is not None
    return label

"""Train: the streams of EPAM-Net and of AMFI-Net, then each network from its two, straight from the stores.

What is learnt from, in which order, is a pure function of the parameters; a run that was stopped goes on at
its next step.
"""

import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric, seed_everything
from torch import nn

from harcache.cache.store_paths import records_dir
from harcache.cache.streaming.dataset import ClipDataset
from harcache.cache.streaming.decoder_processes import default_workers
from harcache.cache.streaming.loader import ClipLoader
from harcache.models.checkpoints import save_checkpoint
from harcache.models.memory import keep_freed_memory
from harcache.models.networks.agcn import AGCN
from harcache.models.networks.amfi_net import AMFINet, ResNet3D18
from harcache.models.networks.epam_net import EPAMNet
from harcache.models.networks.xshiftnet import PoseXShiftNet, RGBXShiftNet
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import file_digest
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.clips import Clip, read_classes
from harcache.pipeline.params import (
    AmfiModelParams,
    AmfiParams,
    DatasetParams,
    RecipeParams,
    TrainParams,
    to_mapping,
)
from harcache.pipeline.work.engine import Engine
from harcache.stages.shared.workspace import AMFI_NETWORKS, EPAM_NETWORKS, Network, Workspace
from harcache.stages.training.curves import Journal
from harcache.stages.training.inputs import Section, preparation
from harcache.stages.training.learning import Learner, launch, loss_of, sharing
from harcache.stages.training.memory_check import check_memory
from harcache.stages.training.resume import STATE, read_state, requeue, stopping, write_state
from harcache.stages.training.samples import (
    CHECKPOINT,
    check_stores,
    class_names,
    make_dataset,
    split_clips,
    stores_of,
    training_params,
)
from harcache.stages.training.trained import Trained, check_classes, load_trained

__all__ = ["BEST", "How", "Summary", "run"]

BEST = "best.pt"

_FREE = ("num_classes", "dropout")  # arguments in which a checkpoint to start from may differ
_Kind = TypeVar("_Kind", bound=nn.Module)


@dataclass(frozen=True)
class How:
    """How a run goes; nothing here changes what is learnt, but ``compiled`` its rounding.

    ``save_every``: seconds between states on disk. ``anew``: leave the state that is there. ``workers``:
    processes that decode. ``tensorboard``: write its files as well.
    """

    save_every: float = 60.0
    anew: bool = False
    compiled: bool = False
    tensorboard: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class Summary:
    """How a run went, for the command line's ``--json``.

    ``stopped`` names the signal that ended it early. ``curves``: by split the last epoch that was closed, its
    loss and its top-1 ``accuracy``. The rest is of all epochs that are over, in all processes, and
    ``warning`` what made them wait too long.
    """

    dataset: str
    network: str
    step: int
    steps: int
    stopped: str | None
    curves: dict[str, dict[str, float]]
    samples_per_second: float
    wait_share: float
    warning: str | None
    folder: str


def run(
    network: Network, params: DatasetParams, workspace: Workspace, engine: Engine, how: How | None = None
) -> Summary:
    """Train one network and write its checkpoints, curves and logs into its training folder.

    Training runs in this process, not on the engine's workers, or in those that torchrun or srun started. It
    goes on from the state in the folder unless that is of other parameters or data.

    Raises HarcacheError, before any work, when the dataset has no training parameters, protocol, classes or
    clips, when its stores or the checkpoints to start from are missing, damaged or do not fit, or when the
    batch does not fit in memory; and for a loss that is no number any more.
    """
    how = how or How()
    train = training_params(network, params)
    recipe: RecipeParams = getattr(train, network)
    classes = class_names(read_classes(workspace.classes), train, params.name)
    check_stores(params, workspace)
    clips, tested = (split_clips(workspace, train, split) for split in ("train", "test"))
    if isinstance(train, TrainParams) and workspace.rgb in stores_of(workspace):
        _check_joined(params, train)
    fabric = launch(workspace.device, recipe.precision)
    _configure(fabric.device)
    seed_everything(train.seed, verbose=False)
    made, starts = _make_network(network, train, classes, workspace)
    dataset, prepare = make_dataset(network, workspace, train, clips, True), preparation(network, params)
    check_memory(
        made,
        lambda trial, batch: loss_of(trial, batch, recipe)[0],
        dataset,
        prepare,
        recipe,
        fabric.world_size,
        fabric.device,
        fabric.autocast,
    )
    if fabric.global_rank:
        torch.manual_seed(train.seed + fabric.global_rank)  # else all processes drop out the same
    loader, check = (
        _loader(some, recipe, fabric, how.workers)
        for some in (dataset, make_dataset(network, workspace, train, tested, False))
    )
    name = f"train {network}"
    learner = Learner(fabric, made, recipe, loader, check, prepare, name, how.compiled)
    depends_on = {
        "parameters": _parameters(network, params, train),
        "data": _data([clips, tested], train, classes, workspace),
        "checkpoints to start from": fingerprint([file_digest(path) for path in starts]),
    }
    extra = {"protocol": train.protocol, "epochs": recipe.epochs, "params": train.fingerprint}
    # What prediction on other videos needs: how the caches were made, and what a sample is.
    extra |= {"dataset": to_mapping(params)}
    left = _Folder(workspace.training(network), learner, name, depends_on, classes, extra, fabric.global_rank)
    left.go_on(how.anew)
    left.open_journal(how.tensorboard)
    with stopping() as signals:
        over = learner.learn(signals, how.save_every, left.save, left.note)
    stopped = None if over else signals.received or signal.SIGTERM
    if stopped is None:
        left.finish(f"{len(clips)} clips, {recipe.epochs} epochs")
    else:
        _stop(stopped, learner, name, fabric.global_rank)
    waits = learner.waits
    return Summary(
        workspace.dataset,
        network,
        learner.step,
        learner.steps,
        None if stopped is None else stopped.name,
        learner.curves.latest(),
        waits.samples_per_second * learner.processes,
        waits.share,
        waits.warning(),
        str(workspace.training(network)),
    )


@dataclass
class _Folder:
    """What a run leaves: its state, checkpoints, curves and logs. Only the first process writes."""

    path: Path
    learner: Learner
    name: str
    depends_on: dict[str, str]
    classes: Sequence[str]
    extra: dict[str, Any]
    rank: int
    journal: Journal | None = None
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def go_on(self, anew: bool) -> None:
        """Take up the state that is there, or say why not."""
        state = None if anew else read_state(self.path / STATE)
        if state is None:
            return
        before = state["depends_on"]
        changed = [what for what, value in self.depends_on.items() if before.get(what) != value]
        if changed:
            self._say(f"its {' and '.join(changed)} changed, so training starts anew")
            return
        self.learner.load_state_dict(state["learner"])
        self.logged = [(epoch, values) for epoch, values in state["logged"]]
        self._say(f"goes on from step {self.learner.step} of {self.learner.steps}")

    def open_journal(self, tensorboard: bool) -> None:
        """Start the logs, with what was logged before the run was stopped."""
        if self.rank == 0:
            self.journal = Journal(self.path, tensorboard)
            for epoch, values in self.logged:
                self.journal.log(epoch, values)

    def note(self, better: bool) -> None:
        """Log an epoch that has ended, and keep the network if it was never better."""
        learner = self.learner
        waits = learner.last_waits
        values = learner.curves.last(learner.epoch) | {
            "lr": learner.rate,
            "wait_share": waits.share,
            "samples_per_second": waits.samples_per_second * learner.processes,
        }
        if learner.device.type == "cuda":
            values["gpu_memory"] = float(torch.cuda.max_memory_allocated(learner.device))
        self.logged.append((learner.epoch, values))
        if self.journal is not None:
            self.journal.log(learner.epoch, values)
        if better and self.rank == 0:
            save_checkpoint(self.path / BEST, learner.network, self.classes, self.extra)

    def save(self) -> None:
        """Write the state; all processes take part in making it."""
        learner = self.learner.state_dict()
        if self.rank == 0:
            state = {"depends_on": self.depends_on, "learner": learner, "logged": self.logged}
            write_state(self.path / STATE, state)

    def finish(self, what: str) -> None:
        """Write the trained network and its curves, and say how it went."""
        if self.journal is None:
            return
        self.journal.end()
        learner = self.learner
        learner.curves.write(self.path / "plots")
        save_checkpoint(self.path / CHECKPOINT, learner.network, self.classes, self.extra)
        waits = learner.waits
        self._say(f"{what}; {learner.curves.summary()}")
        self._say(
            f"{waits.samples_per_second * learner.processes:.1f} samples a second, {waits.share:.1%} of the "
            "time waiting for batches"
        )
        if warning := waits.warning():
            self._say(warning)

    def _say(self, text: str) -> None:
        if self.rank == 0:
            print(f"{self.name}: {text}", flush=True)


def _stop(received: signal.Signals, learner: Learner, name: str, rank: int) -> None:
    """Say where a run stopped, and have SLURM run its job again if it is SLURM's own warning that came."""
    if rank == 0:
        print(
            f"{name}: stopped by {received.name} at step {learner.step} of {learner.steps}; "
            "the same command goes on from there",
            flush=True,
        )
        job = os.environ.get("SLURM_JOB_ID")
        if received == signal.SIGUSR1 and job is not None:
            requeue(job)


def _configure(device: torch.device) -> None:
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True


def _parameters(network: Network, params: DatasetParams, train: Section) -> str:
    """Stands for all parameters that the network's weights depend on."""
    own = asdict(train)
    return fingerprint(
        network,
        {key: own[key] for key in ("protocol", "seed", "sample", "model", network)},
        asdict(params.heatmap),
    )


def _data(
    splits: Sequence[Sequence[Clip]], train: Section, classes: Sequence[str], workspace: Workspace
) -> str:
    """Stands for the clips, their labels and all that the stores hold of them."""
    records = [sorted(records_dir(path).iterdir()) for path in stores_of(workspace)]
    return fingerprint(
        [[(clip.id, clip.label(train.protocol)) for clip in clips] for clips in splits],
        list(classes),
        [file_digest(path) for paths in records for path in paths],
    )


def _make_network(
    network: Network, train: Section, classes: Sequence[str], workspace: Workspace
) -> tuple[nn.Module, list[Path]]:
    """Return the network to train, and the checkpoints that its first weights are from."""
    if network == "epam" or network == "amfi":
        poses, frames, _ = EPAM_NETWORKS if network == "epam" else AMFI_NETWORKS
        paths = [workspace.training(stream) / CHECKPOINT for stream in (frames, poses)]
        streams = [load_trained(path, "cpu") for path in paths]
        for stream in streams:
            check_classes(stream, classes, f"the dataset '{workspace.dataset}'")
        return _joined(streams, train), paths
    made = _stream(network, train, len(classes))
    init = getattr(train, network).init
    if init is None:
        return made, []
    _start_from(made, Path(init), classes, train.KEY)
    return made, [Path(init)]


def _joined(streams: Sequence[Trained], train: Section) -> nn.Module:
    """Return EPAM-Net, or AMFI-Net with frozen streams, from both of its trained streams."""
    rgb, poses = streams
    if isinstance(train, AmfiParams):
        resnet, skeleton = _as(ResNet3D18, rgb), _as(AGCN, poses)
        if poses.graph != train.model.graph:
            raise HarcacheError(
                f"{poses.path} has the graph {poses.graph}, but amfi's model.graph is {train.model.graph}; "
                "train the skeleton stream again"
            )
        made = AMFINet.from_streams(resnet, skeleton, train.model.reduction)
        made.freeze_streams()
        return made
    return EPAMNet.from_streams(
        _as(RGBXShiftNet, rgb),
        _as(PoseXShiftNet, poses),
        train.model.attention,  # type: ignore[arg-type]
        train.model.dropout,
        train.sample.rgb_frames,
    )


def _check_joined(params: DatasetParams, train: TrainParams) -> None:
    """Raise HarcacheError where EPAM-Net can't join the streams: after both are trained it is too late."""
    model, frames, poses = train.model, train.sample.rgb_frames, train.sample.clip_len
    blocks = model.rgb_blocks, model.pose_blocks
    try:
        # Without values: shapes alone are passed on.
        with torch.device("meta"):
            joined = EPAMNet(1, model.attention, model.width, *blocks, rgb_frames=frames)  # type: ignore[arg-type]
            rgb = torch.empty(1, 3, frames, params.rgb.size, params.rgb.size)
            heatmaps = torch.empty(1, 17, poses, params.heatmap.size, params.heatmap.size)
            joined.eval()(rgb, heatmaps)
    except HarcacheError as error:
        name = params.name
        raise HarcacheError(
            f"EPAM-Net could not join its streams: {error} (training.{name}: model.rgb_blocks, "
            f"model.pose_blocks, sample; datasets.{name}: rgb.size, heatmap.size)"
        ) from error


def _stream(network: Network, train: Section, classes: int) -> nn.Module:
    model = train.model
    if isinstance(model, AmfiModelParams):
        return ResNet3D18(classes) if network == "resnet" else AGCN(classes, model.graph, model.dropout)
    if network == "pose":
        return PoseXShiftNet(classes, width=model.width, blocks=model.pose_blocks, dropout=model.dropout)
    return RGBXShiftNet(classes, width=model.width, blocks=model.rgb_blocks, dropout=model.dropout)


def _start_from(made: Any, path: Path, classes: Sequence[str], key: str) -> None:
    """Take over a checkpoint's backbone, and its head too where it tells the same classes apart."""
    given = load_trained(path, "cpu")
    other: Any = _as(type(made), given)
    kept = [key for key in made.config if key not in _FREE]
    found, asked = ({key: net.config[key] for key in kept} for net in (other, made))
    if found != asked:
        raise HarcacheError(f"{path} holds a network of {found}, but {key}.model asks for {asked}")
    if given.checkpoint.classes == tuple(classes):
        made.load_state_dict(other.state_dict())
    else:
        made.backbone.load_state_dict(other.backbone.state_dict())


def _as(kind: type[_Kind], trained: Trained) -> _Kind:
    if not isinstance(trained.network, kind):
        raise HarcacheError(
            f"{trained.path} holds a {type(trained.network).__name__}; expected a {kind.__name__}"
        )
    return trained.network


def _loader(dataset: ClipDataset, recipe: RecipeParams, fabric: Fabric, workers: int | None) -> ClipLoader:
    ranks = fabric.world_size
    size = min(recipe.batch_size, -(-len(dataset) // ranks) * ranks)
    return ClipLoader(
        dataset,
        size,
        workers=workers or default_workers(fabric.device, sharing()),
        again=True,
        device=fabric.device,
        rank=fabric.global_rank,
        ranks=ranks,
    )

"""Train: the streams of EPAM-Net and of AMFI-Net, then each network from its two, straight from the stores.

What is learnt from, in which order, is a pure function of the parameters; a run that was stopped goes on at
its next step.
"""

import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric, seed_everything
from torch import nn

from harcache.cache.store_paths import records_dir
from harcache.cache.streaming.dataset import ClipDataset
from harcache.cache.streaming.decoder_processes import default_workers
from harcache.cache.streaming.loader import ClipLoader
from harcache.models.memory import keep_freed_memory
from harcache.pipeline.base.files import file_digest
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.base.progress import say
from harcache.pipeline.clips import Clip, read_classes
from harcache.pipeline.params import DatasetParams, RecipeParams, TrainParams, to_mapping
from harcache.pipeline.params.networks import Network
from harcache.pipeline.work.engine import Engine
from harcache.stages.shared.workspace import Workspace
from harcache.stages.training.inputs import Section, preparation
from harcache.stages.training.learning import Learner, loss_of
from harcache.stages.training.memory_check import check_memory
from harcache.stages.training.networks import check_joined, make_network
from harcache.stages.training.processes import launch, processes_sharing_cores
from harcache.stages.training.resume import requeue, stopping
from harcache.stages.training.run_folder import RunFolder
from harcache.stages.training.samples import (
    check_stores,
    class_names,
    make_dataset,
    split_clips,
    stores_of,
    training_params,
)

__all__ = ["Summary", "TrainingOptions", "run"]


@dataclass(frozen=True)
class TrainingOptions:
    """How a run proceeds; nothing here changes what is learnt, but ``compiled`` its rounding.

    ``save_every``: seconds between states on disk. ``restart``: ignore the state that is there. ``workers``:
    processes that decode. ``tensorboard``: write its files as well.
    """

    save_every: float = 60.0
    restart: bool = False
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
    network: Network,
    params: DatasetParams,
    workspace: Workspace,
    engine: Engine,
    options: TrainingOptions | None = None,
) -> Summary:
    """Train one network and write its checkpoints, curves and logs into its training folder.

    Training runs in this process, not on the engine's workers, or in those that torchrun or srun started. It
    goes on from the state in the folder unless that is of other parameters or data.

    Raises HarcacheError, before any work, when the dataset has no training parameters, protocol, classes or
    clips, when its stores or the checkpoints to start from are missing, damaged or do not fit, or when the
    batch does not fit in memory; and for a loss that is no number any more.
    """
    options = options or TrainingOptions()
    train = training_params(network, params)
    recipe: RecipeParams = getattr(train, network)
    classes = class_names(read_classes(workspace.classes), train, params.name)
    check_stores(params, workspace)
    splits = [split_clips(workspace, train, split) for split in ("train", "test")]
    if isinstance(train, TrainParams) and workspace.rgb in stores_of(workspace):
        check_joined(params, train)
    fabric = launch(workspace.device, recipe.precision)
    _configure(fabric.device)
    seed_everything(train.seed, verbose=False)
    made, starts = make_network(network, train, classes, workspace)
    learner = _make_learner(network, params, workspace, fabric, made, splits, options)
    depends_on = {
        "parameters": _parameters(network, params, train),
        "data": _data(splits, train, classes, workspace),
        "checkpoints to start from": fingerprint([file_digest(path) for path in starts]),
    }
    extra = {"protocol": train.protocol, "epochs": recipe.epochs, "params": train.fingerprint}
    # What prediction on other videos needs: how the caches were made, and what a sample is.
    extra |= {"dataset": to_mapping(params)}
    path, rank = workspace.training(network), fabric.global_rank
    folder = RunFolder(path, learner, _name(network), depends_on, classes, extra, rank)
    folder.resume(options.restart)
    folder.open_journal(options.tensorboard)
    with stopping() as signals:
        over = learner.learn(signals, options.save_every, folder.save, folder.log_epoch)
    stopped = None if over else signals.received or signal.SIGTERM
    if stopped is None:
        folder.finish(f"{len(splits[0])} clips, {recipe.epochs} epochs")
    else:
        _stop(stopped, learner, _name(network), rank)
    return _summary(workspace, network, learner, stopped)


def _name(network: Network) -> str:
    return f"train {network}"


def _make_learner(
    network: Network,
    params: DatasetParams,
    workspace: Workspace,
    fabric: Fabric,
    made: nn.Module,
    splits: Sequence[Sequence[Clip]],
    options: TrainingOptions,
) -> Learner:
    """Return what trains ``made`` on the training clips and tests it on the others, if a batch fits."""
    train = training_params(network, params)
    recipe: RecipeParams = getattr(train, network)
    clips, tested = splits
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
    loader, test_loader = (
        _loader(some, recipe, fabric, options.workers)
        for some in (dataset, make_dataset(network, workspace, train, tested, False))
    )
    return Learner(fabric, made, recipe, loader, test_loader, prepare, _name(network), options.compiled)


def _summary(
    workspace: Workspace, network: Network, learner: Learner, stopped: signal.Signals | None
) -> Summary:
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


def _stop(received: signal.Signals, learner: Learner, name: str, rank: int) -> None:
    """Print where a run stopped, and requeue SLURM's job where SLURM's own warning stopped it."""
    if rank == 0:
        say(
            f"{name}: stopped by {received.name} at step {learner.step} of {learner.steps}; "
            "the same command goes on from there",
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
    records: list[list[Path]] = [sorted(records_dir(path).iterdir()) for path in stores_of(workspace)]
    return fingerprint(
        [[(clip.id, clip.label(train.protocol)) for clip in clips] for clips in splits],
        list(classes),
        [file_digest(path) for paths in records for path in paths],
    )


def _loader(dataset: ClipDataset, recipe: RecipeParams, fabric: Fabric, workers: int | None) -> ClipLoader:
    ranks = fabric.world_size
    size = min(recipe.batch_size, -(-len(dataset) // ranks) * ranks)
    return ClipLoader(
        dataset,
        size,
        workers=workers or default_workers(fabric.device, processes_sharing_cores()),
        again=True,
        device=fabric.device,
        rank=fabric.global_rank,
        ranks=ranks,
    )

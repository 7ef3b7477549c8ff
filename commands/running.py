"""How a command runs a stage: with the dataset's parameters, its files, its lock, and an engine."""

import importlib
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harcache.stages.shared.workspace import Workspace

__all__ = ["is_first_process", "let_threads_rest", "run_stage", "stdout_for_json", "workspace_of"]

# The others need not wait until PyTorch is loaded.
_ON_DEVICE = ("detect", "pose", "train", "evaluate")
_ON_WORKERS = ("detect", "pose")


def workspace_of(dataset: str, videos: Path = Path("videos"), **options: Any) -> "Workspace":
    """Return where the files of a dataset lie, in the project that the command runs in."""
    from harcache.stages.shared.workspace import Workspace

    return Workspace.under(Path(), dataset, videos, **options)


def run_stage(
    stage: str,
    *what: Any,
    dataset: str,
    videos: Path,
    device: str | None,
    workers: int | None,
    scheduler: str | None,
    unit_timeout: float | None,
    entry: str = "run",
    training: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Run ``stages.<stage>.<entry>(*what, params, workspace, engine)`` while holding the dataset's lock.

    ``training``: fields of ``TrainingOptions``, for the stage train. Returns what the stage does.
    """
    from harcache.pipeline.base.processes import end_with_parent
    from harcache.pipeline.params import load_params
    from harcache.pipeline.work.clusters import scheduler_address
    from harcache.pipeline.work.engine import Engine
    from harcache.stages.shared.workspace import AUTO, choose_device

    if "DVC_STAGE" in os.environ:
        # Else a killed `dvc repro` leaves its command behind, which holds the dataset.
        end_with_parent()
    params = load_params("params.yaml", dataset=dataset)
    # Asked only where it matters: Dask takes a while to load.
    if stage in _ON_WORKERS and (device is None or (workers != 0 and scheduler_address(scheduler))):
        # Workers may have what this machine lacks, and with nothing to do nobody waits for PyTorch.
        options["device"] = device or AUTO
    elif stage in _ON_DEVICE:
        options["device"] = choose_device(device)
    used = options["device"] if stage in _ON_WORKERS and workers != 0 else "cpu"
    workspace = workspace_of(dataset, videos, **options)
    module = importlib.import_module(f"harcache.stages.{stage}")
    more = {}
    if training is not None:
        more["options"] = module.TrainingOptions(workers=workers or None, **training)
    with _lock(stage, workspace.data), Engine(workers, scheduler, used, unit_timeout) as engine:
        return getattr(module, entry)(*what, params, workspace, engine, **more)


def _lock(stage: str, data: Path) -> AbstractContextManager[None]:
    """Return the dataset's lock; of processes that train together the first holds it for all."""
    from harcache.pipeline.work.parts import dataset_lock

    return nullcontext() if stage == "train" and not is_first_process() else dataset_lock(data)


def is_first_process() -> bool:
    """Whether this is the first, or only, of the processes that torchrun or srun started."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def let_threads_rest() -> None:
    """Give the cores to the processes that decode while PyTorch's threads, not yet started, have no work.

    GNU's OpenMP would have them spin for some 4 ms after each operator, while the next batch can't begin:
    3 % of a small network's steps on 2 cores.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        # 0.1 ms, which outlasts the gap between two operators.
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def stdout_for_json(as_json: bool) -> AbstractContextManager[None]:
    """Keep standard output for JSON, where that is asked for: what a stage prints is a notice then."""
    from harcache.pipeline.base.progress import as_notices

    return as_notices() if as_json else nullcontext()

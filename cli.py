"""The command line: each command names a stage and where its files lie; what it does is in `stages`.

Modules are imported by the command that needs them, so that help and errors come at once.
"""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from harcache.pipeline.base.errors import HarcacheError
from harcache.stages.shared.workspace import NETWORKS

__all__ = ["main"]

_STAGES = {
    "index": "Look at the videos that are new or changed, write the manifest, and say what was left out.",
    "detect": "Find the persons of every frame.",
    "pose": "Estimate their keypoints and link them over time.",
    "crop": "Box each clip's persons.",
    "heatmap": "Draw the pose heatmaps into heatmaps.zarr.",
    "rgb": "Crop and encode the frames into rgb.zarr.",
}
# The others need not wait until PyTorch is loaded.
_ON_DEVICE = ("detect", "pose", "train", "evaluate")
_ON_WORKERS = ("detect", "pose")


_INTERRUPTED = 130  # as a shell says it of a process that Ctrl-C ended
_EPILOG = """\b
Ends with
    0  all is well
    1  an error, which one line names; with a traceback it is a defect
    2  a command or option that is not there
  130  stopped by Ctrl-C, training by SIGTERM with 143; the same command goes on

\b
Completion in bash, also zsh and fish:
    eval "$(_HARCACHE_COMPLETE=bash_source harcache)"
"""


class _Group(click.Group):
    """Prints an error that is meant for the user as one line; others keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except (HarcacheError, OSError) as error:
            # A reader that went away, such as `head`, is no error: click ends quietly.
            if ctx.params["debug"] or isinstance(error, BrokenPipeError):
                raise
            raise click.ClickException(_in_one_line(error)) from error
        except KeyboardInterrupt:
            click.echo("Stopped; what is finished is kept, and the same command goes on.", err=True)
            ctx.exit(_INTERRUPTED)


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror or error}; see that it is there, yours to use, and has room"
    return " ".join(str(error).splitlines())


@click.group(
    cls=_Group,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(package_name="harcache")
@click.option(
    "--debug", is_flag=True, envvar="HARCACHE_DEBUG", show_envvar=True, help="Show errors' traceback."
)
@click.option(
    "--quiet",
    is_flag=True,
    envvar="HARCACHE_QUIET",
    show_envvar=True,
    help="Only results and errors: no progress, no notices.",
)
@click.pass_context
def main(ctx: click.Context, debug: bool, quiet: bool) -> None:
    """Turn videos of people into caches, and train action recognition from them.

    `dvc repro` calls these commands in order; each can also be run by itself. They work in the folder of
    dvc.yaml and params.yaml, and a command that is run again does only what is missing. Results are printed
    on standard output, all else on standard error.

    Example: harcache --quiet cache info demo --json
    """
    if quiet:
        from harcache.pipeline.base.progress import quietly

        ctx.with_resource(quietly())


def _dataset_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete a dataset's name; without a readable params.yaml there is none to offer."""
    from harcache.pipeline.params import dataset_names

    try:
        return [name for name in dataset_names() if name.startswith(incomplete)]
    except HarcacheError:
        return []


_dataset_argument = click.argument("dataset", shell_complete=_dataset_names)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_results_option = click.option(
    "--json", "out", type=click.Path(path_type=Path, dir_okay=False), help="File for the results."
)
_videos_option = click.option(
    "--videos",
    type=click.Path(path_type=Path),
    default=Path("videos"),
    envvar="HARCACHE_VIDEOS",
    show_envvar=True,
    help="Folder that holds a folder of videos for each dataset.",
)
_weights_option = click.option(
    "--weights-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="HARCACHE_WEIGHTS_DIR",
    show_envvar=True,
    help="Folder to look for weights in, and to fetch them into.",
)
_device_option = click.option(
    "--device",
    envvar="HARCACHE_DEVICE",
    show_envvar=True,
    help="cpu, cuda, cuda:1. [default: the GPU]",
)


def _stage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where files lie and how work runs; nothing here changes a result."""
    options = [
        _dataset_argument,
        _videos_option,
        _weights_option,
        _device_option,
        click.option(
            "--workers",
            type=int,
            envvar="HARCACHE_WORKERS",
            show_envvar=True,
            help="Processes; 0: none beside this one. [default: one a core, or one a GPU]",
        ),
        click.option(
            "--scheduler",
            envvar="HARCACHE_SCHEDULER",
            show_envvar=True,
            help="Address of a running Dask scheduler, or slurm: have SLURM start the workers.",
        ),
        click.option(
            "--unit-timeout",
            type=click.FloatRange(0, min_open=True),
            envvar="HARCACHE_UNIT_TIMEOUT",
            show_envvar=True,
            metavar="SECONDS",
            help="End the worker of a part that takes longer, and find the clip that hangs. [default: never]",
        ),
        click.option(
            "--max-failed",
            type=click.FloatRange(0, 1),
            default=0.01,
            envvar="HARCACHE_MAX_FAILED",
            show_envvar=True,
            help="Part of the clips that may fail.",
        ),
        click.option(
            "--retry-failed",
            is_flag=True,
            envvar="HARCACHE_RETRY_FAILED",
            show_envvar=True,
            help="Try clips again that failed before.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _run(
    stage: str,
    *what: Any,
    dataset: str,
    videos: Path,
    device: str | None,
    workers: int | None,
    scheduler: str | None,
    unit_timeout: float | None,
    entry: str = "run",
    how: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Run ``stages.<stage>.<entry>(*what, params, workspace, engine)`` while holding the dataset's lock.

    ``how`` is passed on as the stage's ``How``, where it has one. Returns what the stage does.
    """
    from harcache.pipeline.base.processes import end_with_parent
    from harcache.pipeline.params import load_params
    from harcache.pipeline.work.clusters import scheduler_address
    from harcache.pipeline.work.engine import Engine
    from harcache.stages.shared.workspace import AUTO, Workspace, choose_device

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
    workspace = Workspace.under(Path(), dataset, videos, **options)
    module = importlib.import_module(f"harcache.stages.{stage}")
    more = {} if how is None else {"how": module.How(workers=workers or None, **how)}
    with _lock(stage, workspace.data), Engine(workers, scheduler, used, unit_timeout) as engine:
        return getattr(module, entry)(*what, params, workspace, engine, **more)


def _lock(stage: str, data: Path) -> AbstractContextManager[None]:
    """Return the dataset's lock; of processes that train together the first holds it for all."""
    from harcache.pipeline.work.parts import dataset_lock

    return nullcontext() if stage == "train" and not _is_first() else dataset_lock(data)


def _is_first() -> bool:
    """Whether this is the first, or only, of the processes that torchrun or srun started."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _let_threads_rest() -> None:
    """Give the cores to the processes that decode while PyTorch's threads, not yet started, have no work.

    GNU's OpenMP would have them spin for some 4 ms after each operator, while the next batch can't begin:
    3 % of a small network's steps on 2 cores.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        # 0.1 ms, which outlasts the gap between two operators.
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def _kept_for_json(as_json: bool) -> AbstractContextManager[None]:
    """Keep standard output for JSON, where that is asked for: what a stage prints is a notice then."""
    from harcache.pipeline.base.progress import as_notices

    return as_notices() if as_json else nullcontext()


def _add_stage(name: str, text: str) -> None:
    @main.command(name=name, help=f"{text}\n\nExample: harcache {name} demo")
    @_stage_options
    def command(**options: Any) -> None:
        _run(name, **options)


for _name, _text in _STAGES.items():
    _add_stage(_name, _text)


@main.command()
@click.argument("network", type=click.Choice(NETWORKS))
@_stage_options
@click.option("--compile", "compiled", is_flag=True, help="Compile the network, for a GPU; rounds otherwise.")
@click.option("--save-every", type=click.FloatRange(0), default=60, help="Seconds between states on disk.")
@click.option("--anew", is_flag=True, help="Start again, whatever state is there.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files as well.")
@_json_option
def train(
    network: str,
    compiled: bool,
    save_every: float,
    anew: bool,
    tensorboard: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a NETWORK from the caches: EPAM-Net's streams pose and rgb, then epam from both.

    In the same way AMFI-Net's streams skeleton and resnet, then amfi, whose streams stay as they are.

    Stopped by whatever, it goes on from its last saved step when it is called again; SIGTERM has it finish
    and save its step first. torchrun and srun start it on several GPUs: see docs/training.md.

    Example: harcache train epam demo
    """
    how = {"compiled": compiled, "save_every": save_every, "anew": anew, "tensorboard": tensorboard}
    _let_threads_rest()
    with _kept_for_json(as_json):
        summary = _run("train", network, how=how, **options)
    if as_json and _is_first():
        click.echo(json.dumps(asdict(summary), indent=1))
    if summary.stopped is not None:
        # As a shell says it of a process that a signal ended.
        sys.exit(128 + signal.Signals[summary.stopped])


@main.command()
@_stage_options
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Network to measure instead, trained here or released; may be given again.",
)
@click.option("--amfi", is_flag=True, help="Measure AMFI-Net and its streams, not EPAM-Net and its.")
@click.option("--clips", type=click.IntRange(1), help="Samples of each clip to average, such as 10.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for results; with it or an option above, no other results are written.",
)
@_json_option
def evaluate(
    checkpoints: tuple[Path, ...],
    amfi: bool,
    clips: int | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the trained networks on the test split, and the stages where the truth is known.

    Example: harcache evaluate demo
    """
    with _kept_for_json(as_json):
        if checkpoints or amfi or clips or out:
            metrics = _run("evaluate", checkpoints, clips, out, amfi, entry="run_own", **options)
        else:
            metrics = _run("evaluate", **options)
    if as_json:
        click.echo(json.dumps(metrics, indent=1))


@main.command()
@_dataset_argument
@_videos_option
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="File. [default: report/DATASET.html]"
)
def report(dataset: str, videos: Path, out: Path | None) -> None:
    """Write one HTML file that shows a dataset: clips, failures, storage, training, accuracy, pictures.

    It holds all that it shows, works without a network, and says what is not there yet.

    Example: harcache report demo
    """
    from harcache.stages import report as stage
    from harcache.stages.shared.workspace import Workspace

    workspace = Workspace.under(Path(), dataset, videos)
    stage.run(workspace, out or Path("report") / f"{dataset}.html")


@main.command()
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="The network to ask.")
@click.option("--dataset", help="Dataset whose params.yaml counts. [default: as the checkpoint was trained]")
@click.option(
    "--window",
    type=click.FloatRange(0, min_open=True),
    help="Seconds that are taken as a clip. [default: the whole video]",
)
@click.option(
    "--stride",
    type=click.FloatRange(0, min_open=True),
    help="Seconds from one window to the next. [default: half a window]",
)
@click.option("--top", type=click.IntRange(1), default=5, help="Classes to tell, the likeliest first.")
@click.option(
    "--overlay",
    type=click.Path(path_type=Path),
    help="Video to draw persons, attention and classes into; a folder for several.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@_weights_option
@_device_option
def predict(
    videos: tuple[Path, ...],
    checkpoint: Path,
    dataset: str | None,
    weights_dir: Path | None,
    device: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Tell what is done in VIDEOS, files and folders of them, that no stage has seen.

    A video that can't be read is named at the end, with exit code 1; the others are told all the same.

    Example: harcache predict walk.mp4 --checkpoint network.pt --overlay out.mp4
    """
    if options["stride"] is not None and options["window"] is None:
        raise click.UsageError("--stride is from one window to the next: give --window too.")
    from harcache.commands import predict as stage
    from harcache.pipeline.params import load_params
    from harcache.stages.shared.workspace import Workspace, choose_device

    params = None if dataset is None else load_params("params.yaml", dataset=dataset)
    workspace = None if dataset is None else Workspace.under(Path(), dataset, Path("videos"))
    asked = stage.Options(**options)
    stage.run(videos, checkpoint, params, workspace, asked, weights_dir, choose_device(device), as_json)


@main.command()
@_dataset_argument
@click.argument("clips", nargs=-1, metavar="[CLIP]...")
@_videos_option
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder. [default: data/DATASET/preview]"
)
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="Network whose attention and classes to show."
)
@click.option("--count", type=click.IntRange(1), default=4, help="Clips to choose where none are named.")
@click.option("--columns", type=click.IntRange(1, 16), default=6, help="Frames in a picture.")
@_device_option
@_json_option
def preview(
    dataset: str,
    clips: tuple[str, ...],
    videos: Path,
    out: Path | None,
    checkpoint: Path | None,
    count: int,
    columns: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Draw what is stored of clips: persons, keypoints, crops, heatmaps; a picture and a short video of each.

    Without CLIP a few are chosen, from classes evenly spread. What is missing, such as the videos, is left
    out and named.

    Example: harcache preview demo --checkpoint data/demo/training/epam/network.pt
    """
    from harcache.commands import preview as stage
    from harcache.pipeline.params import load_params
    from harcache.stages.shared.workspace import Workspace, choose_device

    params = load_params("params.yaml", dataset=dataset)
    workspace = Workspace.under(Path(), dataset, videos)
    options = stage.Options(out or workspace.data / "preview", checkpoint, count, columns)
    used = "cpu" if checkpoint is None else choose_device(device)
    stage.run(clips, params, workspace, options, used, as_json)


@main.group()
def bench() -> None:
    """Measure on this machine, rivals side by side; docs/benchmarks.md has what was found."""


def _measure(what: str, out: Path | None, *sizes: Any) -> None:
    """Run ``benchmarks.<what>.measure(*sizes)``, print its table, and write its results where asked."""
    from harcache.benchmarks.timing import write_results

    module = importlib.import_module(f"harcache.benchmarks.{what}")
    results = module.measure(*sizes)
    click.echo(module.as_table(results))
    write_results(out, results)


@bench.command(name="extract")
@click.option("--device", default="cpu", help="cpu, cuda, cuda:1.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    help="Of the networks.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads that read ahead. [default: one a core]")
@_results_option
def bench_extract(device: str, precision: str, threads: int | None, out: Path | None) -> None:
    """Time pose estimation and detection in batches beside mmpose and Ultralytics, frame by frame.

    Example: harcache bench extract --device cuda --json extract.json
    """
    _measure("extract", out, device, precision, threads)


@bench.command(name="loader")
@click.option("--clips", type=click.IntRange(1), default=24, help="Clips to film, of 96 frames each.")
@click.option("--rounds", type=click.IntRange(1), default=7, help="Times that each way is measured.")
@_results_option
def bench_loader(clips: int, rounds: int, out: Path | None) -> None:
    """Time samples from the stores beside the released way, zarr-python, LitData, WebDataset and the limit.

    Example: harcache bench loader --json loader.json
    """
    _measure("loader", out, clips, rounds)


@bench.command(name="model")
@click.option("--size", type=click.IntRange(32), default=224, help="Pixels of a frame's side.")
@_results_option
def bench_model(size: int, out: Path | None) -> None:
    """Time EPAM-Net and its Conv3d form, forward and in training, and find the memory that they need.

    Example: harcache bench model --json model.json
    """
    _measure("model", out, size)


@bench.command(name="train")
@click.option("--device", help="cpu, cuda, cuda:1. [default: the GPU]")
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16"]), default="bfloat16", help="Of the network."
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the network.")
@click.option("--batch", type=click.IntRange(1), help="Clips. [default: what fits, up to 96]")
@click.option("--clips", type=click.IntRange(1), default=64, help="Clips to film, of 96 frames each.")
@click.option("--seconds", type=click.FloatRange(0), default=15, help="How long to train in each way.")
@_results_option
def bench_train(
    device: str | None,
    precision: str,
    compiled: bool,
    batch: int | None,
    clips: int,
    seconds: float,
    out: Path | None,
) -> None:
    """Train EPAM-Net from the stores, in the released way, and without a loader; say how long each waits.

    Example: harcache bench train --compile --json train.json
    """
    _let_threads_rest()
    _measure("train", out, device, precision, compiled, batch, clips, seconds)


@bench.command(name="scale")
@click.option("--clips", type=click.IntRange(16), default=114_480, help="NTU RGB+D 120 has 114,480.")
@_results_option
def bench_scale(clips: int, out: Path | None) -> None:
    """Time what grows with the number of CLIPS, at that number and a sixteenth: on indices without frames.

    Example: harcache bench scale --json scale.json
    """
    _measure("scale", out, clips)


@bench.command(name="units")
@click.option("--units", type=click.IntRange(1), default=10_000, help="Parts, of 32 clips each.")
@_results_option
def bench_units(units: int, out: Path | None) -> None:
    """Time what Dask takes to hand out a part and to get word of it, and see whether memory grows meanwhile.

    Example: harcache bench units --json units.json
    """
    _measure("units", out, units)


@main.command(name="models")
@click.option("--classes", type=click.IntRange(1), default=60, help="Actions to tell apart.")
@_json_option
def list_models(classes: int, as_json: bool) -> None:
    """Print every network's parameters and multiply-adds, beside the figures that its paper prints.

    Example: harcache models
    """
    from harcache.models.summary import as_table, summarise

    found = summarise(classes)
    click.echo(json.dumps([asdict(one) for one in found], indent=1) if as_json else as_table(found))


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--input",
    "sizes",
    type=(str, int, int, int),
    multiple=True,
    help="An input's name, frames, height and width. [default: as in training, else in the paper]",
)
def export(checkpoint: Path, out: Path, sizes: tuple[tuple[str, int, int, int], ...]) -> None:
    """Write a trained network for other programs: OUT ends with .pt2 (torch.export) or .onnx.

    Example: harcache export network.pt network.onnx --input rgb 4 64 64
    """
    from harcache.models.export import export_checkpoint

    shapes = export_checkpoint(
        checkpoint, out, {name: (frames, height, width) for name, frames, height, width in sizes}
    )
    taken = ", ".join(f"{name} (clips, {', '.join(map(str, shape))})" for name, shape in shapes.items())
    click.echo(f"{out}: takes {taken}")


@main.command()
def params() -> None:
    """Print every parameter of params.yaml: its values, its default and what it is for, in Markdown.

    Example: harcache params
    """
    from harcache.pipeline.params.table import as_markdown

    click.echo(as_markdown(), nl=False)


@main.group()
def weights() -> None:
    """Bring in the weights of action recognition networks that others trained."""


@weights.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
def import_weights(file: Path, out: Path) -> None:
    """Make a checkpoint of a FILE that the released EPAM-Net implementation wrote.

    Example: harcache weights import epam_net_ntu60_xsub.pth --out checkpoint.pt
    """
    from harcache.models.checkpoints import import_released_checkpoint

    network = import_released_checkpoint(file, out)
    click.echo(f"{out}: {type(network).__name__} {network.config}")


@main.group()
def poses() -> None:
    """Take poses that others estimated, and give yours to other programs; docs/poses.md tells more."""


@poses.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="HDF5 to write.")
def import_poses(file: Path, out: Path) -> None:
    """Make a FILE in PYSKL's form ready for the pose stage: `pose: {backend: import, source: OUT}`.

    Nothing in the pickle is run; entries that can't be used are listed beside OUT.

    Example: harcache poses import ntu60_hrnet.pkl --out poses/ntu60.h5
    """
    from harcache.commands import poses as poses_io

    poses_io.import_poses(file, out)


@poses.command(name="export")
@_dataset_argument
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Pickle to write."
)
@click.option("--protocol", help="Whose labels and splits to write. [default: all, where labels agree]")
def export_poses(dataset: str, out: Path, protocol: str | None) -> None:
    """Write the dataset's poses in PYSKL's form, with labels and splits.

    Example: harcache poses export demo --out demo.pkl
    """
    from harcache.commands import poses as poses_io

    poses_io.export_poses(_workspace(dataset), out, protocol)


@main.group()
def cache() -> None:
    """Look into a dataset's caches, and check that no bit of them has changed."""


def _workspace(dataset: str) -> Any:
    from harcache.stages.shared.workspace import Workspace

    return Workspace.under(Path(), dataset, Path("videos"))


@cache.command(name="info")
@_dataset_argument
@_json_option
def cache_info(dataset: str, as_json: bool) -> None:
    """Say what the caches hold: clips, rows, bytes, codecs, classes of each split, failures.

    Example: harcache cache info demo
    """
    from harcache.stages.shared import contents as caches

    found = caches.info(_workspace(dataset))
    click.echo(json.dumps(found, indent=1) if as_json else caches.describe(found))


@cache.command(name="digest")
@_dataset_argument
@_json_option
def cache_digest(dataset: str, as_json: bool) -> None:
    """Print a digest of each clip's decoded values, and one of all clips.

    They are equal for caches that hold the same, built in one go or in steps.

    Example: harcache cache digest demo
    """
    from harcache.stages.shared import contents as caches

    clips = caches.digests(_workspace(dataset))
    total = caches.total(clips)
    if as_json:
        click.echo(json.dumps({"dataset": dataset, "digest": total, "clips": clips}, indent=1))
    else:
        click.echo("\n".join([*(f"{digest}  {id}" for id, digest in clips.items()), f"{total}  total"]))


@cache.command(name="verify")
@_dataset_argument
@click.option("--repair", is_flag=True, help="Remove damaged parts, so that their stages make them again.")
@_json_option
def cache_verify(dataset: str, repair: bool, as_json: bool) -> None:
    """Find every changed, cut or missing file, and name the clips in it.

    Ends with 1 when something is wrong; with --repair it ends with 0 once all of that is marked to be made
    again, by `dvc repro` or by the stages that it names.

    Example: harcache cache verify demo
    """
    from harcache.commands import verify

    verify.report(verify.verify(_workspace(dataset), repair), dataset, repair, as_json)


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("videos/demo"),
    help="Folder for the videos.",
)
@click.option("--seed", default=0, help="Other seeds draw other performers and motions.")
@click.option(
    "--workers",
    type=click.IntRange(0),
    envvar="HARCACHE_WORKERS",
    show_envvar=True,
    help="Processes; 0 counts as 1. [default: one a core]",
)
def demo(out: Path, seed: int, workers: int | None) -> None:
    """Draw the demo's videos of figures that act, with the truth beside them.

    Example: harcache demo --out videos/demo
    """
    from harcache.pipeline.datasets.demo import DemoSpec, generate_demo

    made = generate_demo(out, DemoSpec(seed), None if workers is None else max(1, workers))
    click.echo(f"{out}: {made} videos made, the others were there")


if __name__ == "__main__":
    main()

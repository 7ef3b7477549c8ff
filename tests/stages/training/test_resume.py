"""A run that is stopped, by whatever, ends where it would have ended; two processes learn what one does."""

import os
import random
import re
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from harcache.models.checkpoints import load_checkpoint
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_manifest, write_manifest
from harcache.pipeline.params import DatasetParams
from harcache.pipeline.work.engine import Engine
from harcache.stages import train
from harcache.stages.shared.workspace import Workspace
from harcache.stages.train import Summary, TrainingOptions
from harcache.stages.training import processes, resume
from harcache.stages.training.learning import Learner
from harcache.stages.training.resume import STATE, read_state, write_state
from harcache.stages.training.samples import CHECKPOINT
from tests.tiny_demo import PARAMS

# Four clips, two steps an epoch.
_EPOCHS = 5
_STEPS = 2 * _EPOCHS


def _recipe(**values: Any) -> DatasetParams:
    assert PARAMS.train is not None
    recipe = replace(PARAMS.train.pose, **{"epochs": _EPOCHS, "lr": 0.05, **values})
    return replace(PARAMS, train=replace(PARAMS.train, pose=recipe))


def _fresh(demo: Workspace, project: Path) -> Workspace:
    """A workspace with the demo's stores and no training."""
    workspace = Workspace.under(project, "demo", project / "videos")
    workspace.data.mkdir(parents=True)
    for name in ("manifest.csv", "classes.csv", "heatmaps.zarr", "rgb.zarr"):
        (workspace.data / name).symlink_to(demo.data / name)
    return workspace


def _run(workspace: Workspace, params: DatasetParams, **options: Any) -> Summary:
    torch.set_num_threads(1)
    with Engine(workers=0) as engine:
        return train.run("pose", params, workspace, engine, TrainingOptions(save_every=0, **options))


def _run_until(workspace: Workspace, params: DatasetParams, step: int, later: float, number: int) -> None:
    """Run and send this very process a signal ``later`` seconds after a step has begun."""
    learn = Learner._learn_from

    def watched(learner: Learner, batch: Any) -> None:
        if learner.step == step:
            threading.Timer(later, os.kill, (os.getpid(), number)).start()
        learn(learner, batch)

    Learner._learn_from = watched  # type: ignore[method-assign]
    stopped = _run(workspace, params).stopped
    os._exit(0 if stopped is None else 128 + signal.Signals[stopped])


def _by_torchrun(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells each of the processes that it starts."""
    return {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
    }


def _by_srun(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What SLURM tells each of the processes that srun starts on one machine, which is not the port."""
    return {
        "SLURM_JOB_ID": str(40000 + port - 15000),
        # As in a shell of salloc, from which Lightning by itself takes it that nobody started processes.
        "SLURM_JOB_NAME": "interactive",
        "SLURM_STEP_ID": "0",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "localhost",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": str(ranks),
        "SLURM_NTASKS_PER_NODE": str(ranks),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


def _run_exactly(
    workspace: Workspace,
    params: DatasetParams,
    told: dict[str, str],
    run: Callable[..., Any] = _run,
    *more: Any,
) -> None:
    """Run as one of several processes, and in float64: in float32 ten steps blow the last digits up."""
    os.environ |= told
    processes._PRECISIONS["float32"] = "64-true"
    make = Learner.__init__

    def exactly(learner: Learner, fabric: Any, network: Any, *arguments: Any) -> None:
        *before, prepare, label, compiled = arguments
        make(learner, fabric, network, *before, lambda *batch: _doubled(prepare(*batch)), label, compiled)

    Learner.__init__ = exactly  # type: ignore[method-assign]
    try:
        run(workspace, params, *more)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    # At once: multiprocessing would wait for the loader's processes, which end with this one.
    os._exit(0)


def _doubled(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def _start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    # A server that has loaded everything and has trained nothing forks them.
    fresh = get_context("forkserver")
    fresh.set_forkserver_preload([__name__, "dvclive"])
    process = fresh.Process(target=function, args=arguments)
    process.start()
    return process


def _weights(workspace: Workspace) -> dict[str, torch.Tensor]:
    return load_checkpoint(workspace.training("pose") / CHECKPOINT).state_dict


def _files(workspace: Workspace) -> dict[str, str]:
    folder = workspace.training("pose")
    return {name: (folder / "plots" / name).read_text() for name in ("loss.csv", "accuracy.csv")}


@pytest.fixture(scope="module")
def whole(demo: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run that nothing stopped."""
    workspace = _fresh(demo, tmp_path_factory.mktemp("whole"))
    assert _run(workspace, _recipe()).stopped is None
    return workspace


def _assert_same(one: Workspace, other: Workspace) -> None:
    first, second = _weights(one), _weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert _files(one) == _files(other)


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_run_ends_as_if_it_had_not_been(
    demo: Workspace, whole: Workspace, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = random.Random(seed)
    step, later, workers = chosen.randrange(_STEPS), chosen.uniform(0, 0.1), chosen.randint(1, 4)
    workspace = _fresh(demo, tmp_path)
    process = _start(_run_until, workspace, _recipe(), step, later, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    state = read_state(workspace.training("pose") / STATE)
    assert _run(workspace, _recipe(), workers=workers).stopped is None
    assert (state is None) == ("goes on from step" not in capsys.readouterr().out)
    _assert_same(workspace, whole)


def test_a_state_of_a_newer_version_is_not_to_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"harcache-training-2\nand so on")
    with pytest.raises(HarcacheError, match=r"state\.pt was written by a newer version of harcache"):
        read_state(tmp_path / "state.pt")


def test_a_run_that_is_asked_to_stop_saves_its_step_and_says_so(
    demo: Workspace, whole: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = _fresh(demo, tmp_path)
    process = _start(_run_until, workspace, _recipe(), 4, 0, signal.SIGTERM)
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    assert not (workspace.training("pose") / CHECKPOINT).exists()
    assert _run(workspace, _recipe()).stopped is None
    assert f"train pose: goes on from step 5 of {_STEPS}" in capsys.readouterr().out
    _assert_same(workspace, whole)


def test_a_run_that_is_over_does_nothing_again(
    demo: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = _fresh(demo, tmp_path)
    _run(workspace, _recipe())
    made = (workspace.training("pose") / CHECKPOINT).read_bytes()
    # As DVC does before it runs a stage.
    (workspace.training("pose") / CHECKPOINT).unlink()
    _run(workspace, _recipe())
    assert f"goes on from step {_STEPS} of {_STEPS}" in capsys.readouterr().out
    assert (workspace.training("pose") / CHECKPOINT).read_bytes() == made


@pytest.mark.parametrize(
    ("changed", "what"),
    [({"momentum": 0.8}, "its parameters changed"), ({}, "its data changed")],
)
def test_other_parameters_or_clips_start_anew_and_say_so(
    demo: Workspace,
    whole: Workspace,
    tmp_path: Path,
    changed: dict[str, Any],
    what: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workspace = _fresh(demo, tmp_path)
    workspace.training("pose").mkdir(parents=True)
    (workspace.training("pose") / STATE).write_bytes((whole.training("pose") / STATE).read_bytes())
    if not changed:
        clips = read_manifest(workspace.manifest)
        workspace.manifest.unlink()
        write_manifest(workspace.manifest, [clip for clip in clips if clip.id != clips[0].id])
    _run(workspace, _recipe(**changed))
    assert f"train pose: {what}, so training starts anew" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_or_foreign_state_is_refused(demo: Workspace, tmp_path: Path, damage: str) -> None:
    workspace = _fresh(demo, tmp_path)
    path = workspace.training("pose") / STATE
    write_state(path, {"step": 3})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[:-9], "flipped": data, "foreign": b"not mine"}[damage])
    with pytest.raises(HarcacheError, match=r"state\.pt is damaged or no state .*; delete it, and training"):
        _run(workspace, _recipe())


def test_a_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    write_state(tmp_path / STATE, {"step": os.system})
    with pytest.raises(HarcacheError, match="holds more than plain values and tensors"):
        read_state(tmp_path / STATE)


def test_a_requeue_asks_slurm_and_its_refusal_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "scontrol"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for code in (0, 1):
        program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho no such job >&2\nexit {code}\n')
        program.chmod(0o755)
        if code == 0:
            resume.requeue("4711")
            assert (tmp_path / "asked").read_text() == "requeue 4711\n"
        else:
            with pytest.raises(HarcacheError, match=r"did not requeue job 4711 \(no such job\); submit"):
                resume.requeue("4711")


def _without_dropout(**recipe: Any) -> DatasetParams:
    params = _recipe(**recipe)
    assert params.train is not None
    model = replace(params.train.model, dropout=0.0)
    return replace(params, train=replace(params.train, model=model))


def _free_port() -> int:
    """A port that nobody uses, of the 10,000 that the last digits of a SLURM job's number choose from."""
    for port in random.Random(os.getpid()).sample(range(15000, 25000), 10000):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def _run_together(
    workspace: Workspace, params: DatasetParams, ranks: int, tells: Callable[..., dict[str, str]], *more: Any
) -> list[int | None]:
    """Train with so many processes and return how each of them ended."""
    port = _free_port()
    started = [
        _start(_run_exactly, workspace, params, tells(rank, ranks, port), *more) for rank in range(ranks)
    ]
    for process in started:
        process.join()
    return [process.exitcode for process in started]


@pytest.fixture(scope="module", params=[(4, 1), (3, 1), (4, 2)], ids=["even", "uneven", "in parts"])
def shared(
    request: pytest.FixtureRequest, demo: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workspace, Workspace]:
    """The same run by one process and by two; of three clips the second has none in the last step.

    In parts, gradients of two make a step, and statistics are of a part in all processes.
    """
    count, parts = request.param
    params = _without_dropout(batch_size=2 * parts, accumulate=parts)
    workspaces = []
    for ranks in (1, 2):
        workspace = _fresh(demo, tmp_path_factory.mktemp(f"by{ranks}"))
        if count == 3:
            clips = read_manifest(workspace.manifest)
            workspace.manifest.unlink()
            left_out = next(clip for clip in clips if clip.split("xsub") == "train")
            write_manifest(workspace.manifest, [clip for clip in clips if clip != left_out])
        assert _run_together(workspace, params, ranks, _by_torchrun) == [0] * ranks
        workspaces.append(workspace)
    return workspaces[0], workspaces[1]


def test_two_processes_learn_what_one_does(shared: tuple[Workspace, Workspace]) -> None:
    one, two = map(_weights, shared)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5)


def test_two_processes_measure_what_one_does(shared: tuple[Workspace, Workspace]) -> None:
    one, two = map(_files, shared)
    assert one["accuracy.csv"] == two["accuracy.csv"]


@pytest.mark.parametrize("shared", [(4, 1)], ids=["even"], indirect=True)
def test_a_slurm_job_that_is_warned_is_queued_again_and_goes_on(
    demo: Workspace, shared: tuple[Workspace, Workspace], tmp_path: Path
) -> None:
    workspace, params = _fresh(demo, tmp_path / "project"), _without_dropout()
    program, asked, saved = (tmp_path / name for name in ("scontrol", "asked", "saved.pt"))
    program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\ncp {workspace.training("pose") / STATE} {saved}\n')
    program.chmod(0o755)

    def tells(*place: int) -> dict[str, str]:
        return _by_srun(*place) | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}

    stopped = _run_together(workspace, params, 2, tells, _run_until, 4, 0, signal.SIGUSR1)
    assert stopped == [128 + signal.SIGUSR1] * 2
    assert re.fullmatch(r"requeue 4\d{4}\n", asked.read_text())
    state = read_state(saved)
    assert state is not None and 5 <= state["learner"]["step"] < _STEPS
    # A step 0 would kill it.
    assert _run_together(workspace, params, 2, tells, _run_until, 0, 0, signal.SIGKILL) == [0, 0]
    one, two = _weights(shared[0]), _weights(workspace)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"this SLURM job has 4 tasks, but srun did not start this one; put srun before"),
        ({"SLURM_STEP_ID": "0"}, r"does not say how many a node; give sbatch --ntasks-per-node"),
    ],
)
def test_a_slurm_job_that_would_wait_for_ever_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], message: str
) -> None:
    for name, value in ({"SLURM_NTASKS": "4"} | given).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(HarcacheError, match=message):
        processes.launch("cpu", "float32")

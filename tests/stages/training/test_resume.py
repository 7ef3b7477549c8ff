"""A run that is stopped, by whatever, ends where it would have ended; two processes learn what one does."""

import os
import random
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

from models.checkpoints import load_checkpoint
from pipeline.clips import read_manifest, write_manifest
from pipeline.engine import Engine
from pipeline.errors import HarcacheError
from pipeline.params import DatasetParams
from stages import train
from stages.train import How
from stages.training import learning, resume
from stages.training.learning import Learner
from stages.training.resume import STATE, read_state, write_state
from stages.training.samples import CHECKPOINT
from stages.workspace import Workspace
from tests.stages.conftest import PARAMS

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


def _run(workspace: Workspace, params: DatasetParams, **how: Any) -> signal.Signals | None:
    torch.set_num_threads(1)
    with Engine(workers=0) as engine:
        return train.run("pose", params, workspace, engine, How(save_every=0, **how))


def _run_until(workspace: Workspace, params: DatasetParams, step: int, later: float, number: int) -> None:
    """Run and send this very process a signal ``later`` seconds after a step has begun."""
    learn = Learner._learn_from

    def watched(learner: Learner, batch: Any) -> None:
        if learner.step == step:
            threading.Timer(later, os.kill, (os.getpid(), number)).start()
        learn(learner, batch)

    Learner._learn_from = watched  # type: ignore[method-assign]
    stopped = _run(workspace, params)
    os._exit(0 if stopped is None else 128 + stopped)


def _run_as(workspace: Workspace, params: DatasetParams, rank: int, ranks: int, port: int) -> None:
    """Run as one of the processes that torchrun starts."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
    }
    try:
        _run(workspace, params)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    # At once: multiprocessing would wait for the loader's processes, which end with this one.
    os._exit(0)


def _run_exactly_as(workspace: Workspace, params: DatasetParams, rank: int, ranks: int, port: int) -> None:
    """The same in float64: in float32 ten steps blow the last digits up to some 1e-5."""
    learning._PRECISIONS["float32"] = "64-true"
    make = Learner.__init__

    def exactly(learner: Learner, fabric: Any, network: Any, *arguments: Any) -> None:
        *before, prepare, label, compiled = arguments
        make(learner, fabric, network, *before, lambda *batch: _doubled(prepare(*batch)), label, compiled)

    Learner.__init__ = exactly  # type: ignore[method-assign]
    _run_as(workspace, params, rank, ranks, port)


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
    assert _run(workspace, _recipe()) is None
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
    assert _run(workspace, _recipe(), workers=workers) is None
    assert (state is None) == ("goes on from step" not in capsys.readouterr().out)
    _assert_same(workspace, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_asked_to_stop_saves_its_step_and_says_so(
    demo: Workspace, whole: Workspace, tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = _fresh(demo, tmp_path)
    process = _start(_run_until, workspace, _recipe(), 4, 0, number)
    process.join()
    assert process.exitcode == 128 + number
    assert not (workspace.training("pose") / CHECKPOINT).exists()
    assert _run(workspace, _recipe()) is None
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


@pytest.fixture(scope="module", params=[4, 3], ids=["even", "uneven"])
def shared(
    request: pytest.FixtureRequest, demo: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workspace, Workspace]:
    """The same run by one process and by two; of three clips the second has none in the last step."""
    assert PARAMS.train is not None
    model = replace(PARAMS.train.model, dropout=0.0)
    params = _recipe()
    assert params.train is not None
    params = replace(params, train=replace(params.train, model=model))
    workspaces = []
    for ranks in (1, 2):
        workspace = _fresh(demo, tmp_path_factory.mktemp(f"by{ranks}"))
        if request.param == 3:
            clips = read_manifest(workspace.manifest)
            workspace.manifest.unlink()
            left_out = next(clip for clip in clips if clip.split("xsub") == "train")
            write_manifest(workspace.manifest, [clip for clip in clips if clip != left_out])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = [_start(_run_exactly_as, workspace, params, rank, ranks, port) for rank in range(ranks)]
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * ranks
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

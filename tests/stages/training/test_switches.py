"""Each switch of training does what it says, and leaves what is learnt as it was but for rounding."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from harcache.cli import main
from harcache.models import compiling
from harcache.models.checkpoints import load_checkpoint
from harcache.models.networks.xshiftnet import PoseXShiftNet
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import DatasetParams, to_mapping
from harcache.pipeline.work.engine import Engine
from harcache.stages import train
from harcache.stages.shared.workspace import Workspace
from harcache.stages.train import Summary, TrainingOptions
from harcache.stages.training.samples import CHECKPOINT
from harcache.stages.training.trained import load_trained
from tests.tiny_demo import PARAMS


def _with(**recipe: Any) -> DatasetParams:
    assert PARAMS.train is not None
    return replace(PARAMS, train=replace(PARAMS.train, pose=replace(PARAMS.train.pose, **recipe)))


def _run(workspace: Workspace, params: DatasetParams = PARAMS, **options: Any) -> Summary:
    with Engine(workers=0) as engine:
        return train.run("pose", params, workspace, engine, TrainingOptions(restart=True, **options))


@pytest.fixture
def harcache(own_demo: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call the command line in the project of `own_demo`."""
    project = own_demo.data.parents[1]
    sections = to_mapping(PARAMS)
    name, training, _ = (sections.pop(key) for key in ("name", "train", "amfi"))
    content = {"datasets": {name: sections}, "training": {name: training}}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(project)
    return lambda *arguments: CliRunner().invoke(main, [*arguments, "--device", "cpu"])


def test_json_alone_is_on_standard_output_and_tells_how_training_went(harcache: Callable[..., Any]) -> None:
    done = harcache("--quiet", "train", "pose", "demo", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["network"], told["step"], told["steps"], told["stopped"]) == ("pose", 2, 2, None)
    assert told["curves"].keys() == {"train", "test"} and told["curves"]["test"]["epoch"] == 1
    assert (Path(told["folder"]) / CHECKPOINT).exists()


def test_json_tells_what_evaluation_found_and_the_words_are_notices(
    trained: Workspace, harcache: Callable[..., Any]
) -> None:
    network = trained.training("pose") / CHECKPOINT
    done = harcache("evaluate", "demo", "--json", "--checkpoint", str(network))
    assert done.exit_code == 0 and "2 test clips of 'xsub'" in done.stderr
    told = json.loads(done.stdout)
    assert told["top1"].keys() == {"pose"} and told["checkpoints"] == [str(network)]


def test_half_precision_learns_what_whole_precision_does(own_demo: Workspace) -> None:
    whole, half = (
        _run(own_demo, _with(epochs=3, precision=precision)).curves for precision in ("float32", "bfloat16")
    )
    for split in ("train", "test"):
        assert half[split]["loss"] != whole[split]["loss"]
        assert half[split]["loss"] == pytest.approx(whole[split]["loss"], rel=0.02)
    made = load_checkpoint(own_demo.training("pose") / CHECKPOINT).state_dict
    assert {value.dtype for value in made.values()} == {torch.float32, torch.int64}


@pytest.mark.slow  # Two sizes of batch are traced, and testing once more.
def test_a_compiled_network_learns_the_same_and_is_written_as_any_other(
    own_demo: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced, forward and backward, as for every backend; building it in C++ would take minutes.
    monkeypatch.setattr(
        compiling, "compiled", lambda network: torch.compile(network, dynamic=False, backend="aot_eager")
    )
    plain = _run(own_demo, _with(epochs=2)).curves
    compiled = _run(own_demo, _with(epochs=2), compiled=True).curves
    for split in ("train", "test"):
        assert compiled[split]["loss"] == pytest.approx(plain[split]["loss"], rel=1e-3)
    assert isinstance(load_trained(own_demo.training("pose") / CHECKPOINT, "cpu").network, PoseXShiftNet)


def test_tensorboard_shows_each_epoch(own_demo: Workspace) -> None:
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra tensorboard"
    )
    told = _run(own_demo, _with(epochs=2), tensorboard=True)
    written = events.EventAccumulator(str(own_demo.training("pose") / "tensorboard")).Reload()
    assert {"train/loss", "test/accuracy", "lr", "wait_share"} <= {*written.Tags()["scalars"]}
    losses = written.Scalars("train/loss")
    assert [each.step for each in losses] == [1, 2]
    assert losses[-1].value == pytest.approx(told.curves["train"]["loss"])


def test_tensorboard_that_is_not_there_is_named_before_any_step(
    own_demo: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        HarcacheError, match=r"tensorboard is not installed; run: pip install 'harcache\[tensorb"
    ):
        _run(own_demo, tensorboard=True)
    assert not (own_demo.training("pose") / CHECKPOINT).exists()

"""What is measured in each epoch goes into DVCLive's files, or says at once why it can't."""

import subprocess
import sys
from pathlib import Path

import pytest

from harcache.pipeline.base.errors import HarcacheError
from harcache.stages.training.curves import Journal


def test_a_repository_without_a_commit_is_told_of_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.repo import Repo

    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    Repo.init(str(tmp_path)).close()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HarcacheError, match="'Empty git repo'; commit once, then train"):
        Journal(tmp_path / "training", tensorboard=False)


def test_without_dvclive_training_says_so_once_and_goes_on_but_not_where_dvc_waits_for_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "dvclive", None)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    journal = Journal(tmp_path, tensorboard=False)
    journal.log(1, {"loss": 0.5})
    journal.end()
    assert not (tmp_path / "live").exists()
    assert "live is not written; run: pip install 'harcache[pipeline]'" in capsys.readouterr().err
    monkeypatch.setenv("DVC_STAGE", "train_pose@demo")
    with pytest.raises(HarcacheError, match=r"dvclive is not installed; run: pip install 'harcache\[pipel"):
        Journal(tmp_path, tensorboard=False)

"""What is measured in each epoch goes into DVCLive's files, or says at once why it can't."""

import subprocess
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

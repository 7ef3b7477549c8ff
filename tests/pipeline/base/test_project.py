"""A project is found from every folder in it, the nearest one, and never somebody else's above."""

import os
from pathlib import Path

import pytest

from harcache.pipeline.base import project as module
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.project import PROJECT_FILES, find_project


def _project(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROJECT_FILES:
        (folder / name).touch()
    return folder


def test_a_project_is_found_from_itself_and_from_every_folder_in_it(tmp_path: Path) -> None:
    project = _project(tmp_path / "lab")
    deep = project / "videos" / "mine" / "wave"
    deep.mkdir(parents=True)
    assert find_project(project) == find_project(deep) == project


def test_of_a_project_in_a_project_the_inner_one_is_found(tmp_path: Path) -> None:
    inner = _project(_project(tmp_path / "lab") / "other")
    (inner / "videos").mkdir()
    assert find_project(inner / "videos") == inner


def test_a_folder_with_one_of_the_files_alone_is_no_project(tmp_path: Path) -> None:
    project = _project(tmp_path / "lab")
    half = project / "half"
    half.mkdir()
    (half / "params.yaml").touch()
    (half / "dvc.yaml").mkdir()
    assert find_project(half) == project


def test_outside_of_any_project_the_error_names_init(tmp_path: Path) -> None:
    with pytest.raises(HarcacheError, match=r"is not in a project: .* create one with `harcache init`"):
        find_project(tmp_path)


def test_a_project_above_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = _project(tmp_path / "lab") / "videos"
    inside.mkdir()
    owner = {inside: 1001, **{inside.parent / name: 1002 for name in PROJECT_FILES}}
    stat = Path.stat

    def owned(path: Path, **options: bool) -> os.stat_result:
        found = stat(path, **options)
        return os.stat_result((*found[:4], owner.get(path, found.st_uid), *found[5:]))

    monkeypatch.setattr(Path, "stat", owned)
    monkeypatch.setattr(module.os, "getuid", lambda: 1001)
    with pytest.raises(HarcacheError, match="lab, above this folder, belongs to another user"):
        find_project(inside)
    # Whoever goes there asks for it; and in a colleague's folders it is the colleague's project.
    assert find_project(inside.parent) == inside.parent
    owner[inside] = 1002
    assert find_project(inside) == inside.parent

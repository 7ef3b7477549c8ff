"""A project of one's own: its files work as they are, nothing is overwritten, and it is found from inside."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import networkx as nx
import pytest
import yaml
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from dvc.repo import Repo

from harcache.cli import main
from harcache.commands import init as module
from harcache.commands.init import DEMO, LAYOUTS, draw_demo, init, params_text
from harcache.pipeline.base import layers
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.datasets.demo import DemoSpec, generate_demo
from harcache.pipeline.params import DatasetParams, dataset_names, load_params
from harcache.pipeline.params.checks import choices_of
from tests.projects import ROOT, succeeded

_FILES = ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore")
_REPOSITORIES = ("a Git repository", "a DVC repository")
_EXTRACTION = ("index", "detect", "pose", "crop", "heatmap", "rgb")


def _init(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["init", *arguments], prog_name="harcache")


def _parts(layout: str) -> str:
    return {"folder": "mine", "poses": "mine"}.get(layout, layout)


def test_there_is_a_project_for_every_layout() -> None:
    kinds = get_args(get_type_hints(DatasetParams)["index"])
    assert {*LAYOUTS, DEMO} == {layout for kind in kinds for layout in choices_of(kind)}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `dvc init` leaves, made once: each call takes seconds."""
    return init(tmp_path_factory.mktemp("repository")).folder / ".dvc"


@pytest.fixture
def quick(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New projects get a copy of that repository; tests of repositories themselves do without this."""

    def copied(folder: Path) -> bool:
        is_new = not (folder / ".dvc").exists()
        shutil.copytree(repository, folder / ".dvc", dirs_exist_ok=True)
        return is_new

    monkeypatch.setattr(module, "_init_dvc", copied)


def _stages(folder: Path) -> nx.DiGraph:
    """What DVC makes of the folder's dvc.yaml and params.yaml: stages, each before those that it needs."""
    graph = Repo(str(folder)).index.graph
    return nx.relabel_nodes(graph, {stage: stage.addressing for stage in graph})


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("layout", [*LAYOUTS, DEMO])
def test_a_new_project_has_parameters_that_are_read_and_stages_that_dvc_knows(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = init(tmp_path, layout)
    assert (made.made, made.kept) == ((*_FILES, *_REPOSITORIES), ())
    (name,) = dataset_names(tmp_path / "params.yaml")
    assert name == {"folder": "mine", "poses": "mine"}.get(layout, layout)
    params = load_params(tmp_path / "params.yaml", dataset=name)
    assert params.index.layout == layout
    monkeypatch.chdir(tmp_path)
    stages = _stages(tmp_path)
    assert {f"{stage}@{name}" for stage in (*_EXTRACTION, "report")} <= set(stages)
    for train, trained, streams in (
        (params.train, "train", ("pose", "rgb")),
        (params.amfi, "train_amfi", ("skeleton", "resnet")),
    ):
        assert (f"{trained}@{name}" in stages) == (train is not None)
        if train is not None:
            needs = {f"{trained}_streams@{name}-{stream}" for stream in streams}
            assert set(stages.successors(f"{trained}@{name}")) >= needs | {f"rgb@{name}"}


@pytest.mark.usefixtures("quick")
def test_what_a_new_project_holds_is_the_repositorys_own(tmp_path: Path) -> None:
    folder = init(tmp_path, DEMO).folder
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes()
    assert (folder / ".dvc" / "config").read_text() == (ROOT / ".dvc" / "config").read_text()


def test_nothing_in_the_pipeline_lies_in_the_installed_package() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    deps = {path for stage in stages for path in stage.get("do", stage).get("deps", ())}
    assert len(deps) > 10
    assert all(path.startswith("data/${") for path in deps)


def test_a_papers_preset_is_taken_as_it_is_but_for_checkpoints_that_a_new_project_lacks() -> None:
    made = yaml.safe_load(params_text("toyota_smarthome"))["training"]["toyota_smarthome"]
    preset = yaml.safe_load((ROOT / "presets" / "toyota_smarthome.yaml").read_text())
    wanted = preset["training"]["toyota_smarthome"]
    assert [wanted[stream].pop("init") for stream in ("pose", "rgb")] == [
        f"data/ntu120/training/{stream}/network.pt" for stream in ("pose", "rgb")
    ]
    assert made == wanted
    assert "# init: data/ntu120/training/pose/network.pt" in params_text("toyota_smarthome")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_new_params_yaml_says_what_is_what_in_lines_of_readable_length(layout: str) -> None:
    text = params_text(layout)
    assert text.count("#") >= 5
    assert max(map(len, text.splitlines())) <= 120
    assert "$" not in text and "\t" not in text


def test_the_page_on_own_videos_shows_the_parameters_that_a_new_project_has() -> None:
    page = (ROOT / "docs" / "own-videos.md").read_text(encoding="utf-8")
    shown = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    made = yaml.safe_load(params_text("folder"))
    assert shown == [{"datasets": made["datasets"]}, {"training": made["training"]}]


@pytest.mark.usefixtures("quick")
def test_a_second_time_everything_is_kept_and_named(tmp_path: Path) -> None:
    folder = init(tmp_path / "lab", "ntu60").folder
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text() + "# mine\n")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = init(folder, "folder")
    assert (again.made, again.kept) == ((), (*_FILES, *_REPOSITORIES))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("quick")
def test_in_a_folder_with_files_of_its_own_these_stay_and_what_they_lack_is_named(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("/data/\n*.bak\n")
    (tmp_path / "notes.txt").write_text("mine")
    shown = _init(str(tmp_path)).stdout.splitlines()
    assert shown[0] == f"{tmp_path}: created dvc.yaml, params.yaml, .dvcignore, " + ", ".join(_REPOSITORIES)
    assert shown[1].startswith(f"{tmp_path}: kept .gitignore (add to it: /metrics/ /report/ /videos/ ")
    assert shown[2].startswith(f"next, in {tmp_path}: put the videos below videos/mine, look through ")
    assert (tmp_path / ".gitignore").read_text() == "/data/\n*.bak\n"
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("quick")
def test_a_pipeline_of_another_version_is_kept_with_a_word(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {index: {cmd: exec harcache index demo}}\n")
    (kept, *_) = init(tmp_path).kept
    assert kept.startswith("dvc.yaml (of another version of harcache; ")


@pytest.mark.parametrize(
    ("name", "text"), [("dvc.yaml", "stages: {a: {cmd: make}}\n"), ("params.yaml", "lr: 0.1\n")]
)
def test_another_programs_pipeline_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(HarcacheError, match=rf"{name} is not harcache's; .* such as {tmp_path}/harcache"):
        init(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lab").touch()
    with pytest.raises(HarcacheError, match="lab is a file; name a folder"):
        init(tmp_path / "lab")


def test_inside_a_repository_the_project_is_a_dvc_repository_of_its_own(
    tmp_path: Path, repository: Path
) -> None:
    succeeded(tmp_path, "git", "init", "--quiet")
    shutil.copytree(repository, tmp_path / ".dvc")
    made = init(tmp_path / "research" / "lab")
    assert made.kept == ("a Git repository",)
    assert not (made.folder / ".git").exists()
    assert Path(succeeded(made.folder, "dvc", "root").strip()) == Path(".")
    assert "index@mine" in succeeded(made.folder, "dvc", "stage", "list", "--name-only")


def test_without_git_dvc_works_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name: None if name == "git" else name)
    made = init(tmp_path / "lab")
    assert "a Git repository" not in (*made.made, *made.kept)
    assert "no_scm = True" in (made.folder / ".dvc" / "config").read_text()
    assert "index@mine" in succeeded(made.folder, "dvc", "stage", "list", "--name-only")


def test_without_dvc_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "is_there", lambda name: False)
    monkeypatch.setitem(sys.modules, "dvc", None)
    with pytest.raises(
        HarcacheError, match=r"package dvc is not installed; run: pip install 'harcache\[pipe"
    ):
        init(tmp_path / "lab")
    assert not (tmp_path / "lab").exists()


def test_a_demo_project_keeps_the_videos_of_another_demo(tmp_path: Path) -> None:
    few = DemoSpec(performers=(1,), cameras=1, actions=(5,))
    assert generate_demo(tmp_path / "videos" / "demo", few, workers=1) == 1
    assert draw_demo(tmp_path) == 0
    assert len(list((tmp_path / "videos" / "demo").glob("*.mp4"))) == 1


@pytest.mark.usefixtures("quick")
def test_the_demos_videos_are_drawn_with_its_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Path] = []
    monkeypatch.setattr(module, "draw_demo", drawn.append)
    assert _init(str(tmp_path), "--demo").exit_code == 0
    assert drawn == [tmp_path]


def test_demo_and_a_layout_together_are_wrong_usage(tmp_path: Path) -> None:
    done = _init(str(tmp_path / "lab"), "--demo", "--layout", "ntu60")
    assert (done.exit_code, (tmp_path / "lab").exists()) == (2, False)
    assert "leave --layout out" in done.stderr


def test_an_unknown_layout_is_answered_with_those_that_there_are(tmp_path: Path) -> None:
    done = _init(str(tmp_path / "lab"), "--layout", "ntu61")
    assert done.exit_code == 2
    assert all(name in done.stderr for name in LAYOUTS)


@pytest.mark.usefixtures("quick")
class TestFromASubfolder:
    """Commands work as git's do: on the project that the folder lies in."""

    @pytest.fixture
    def lab(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        for name in [name for name in os.environ if name.startswith("HARCACHE_")]:
            monkeypatch.delenv(name)
        lab = init(tmp_path / "lab").folder
        (lab / "videos" / "mine" / "wave").mkdir(parents=True)
        return lab

    def _harcache(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, arguments, prog_name="harcache")

    def test_the_project_is_found_and_said_once(self, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(lab / "videos" / "mine")
        done = self._harcache("index", "mine")
        found, error = done.stderr.splitlines()
        assert found == f"the project is {lab}, above this folder; paths in messages are relative to it"
        assert error.startswith("Error: videos/mine has no videos for the layout 'folder'")
        assert Path.cwd() == lab / "videos" / "mine"
        assert self._harcache("--quiet", "index", "mine").stderr == f"{error}\n"

    def test_in_the_projects_own_folder_nothing_is_said(
        self, lab: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(lab)
        assert self._harcache("index", "mine").stderr.startswith("Error: videos/mine has no videos")

    def test_a_typed_path_is_relative_to_where_it_was_typed(
        self, lab: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(lab / "videos")
        typed = self._harcache("index", "mine", "--videos", "elsewhere").stderr.splitlines()[-1]
        assert typed.startswith(f"Error: {lab}/videos/elsewhere/mine is not a folder")

    def test_a_path_of_the_environment_is_relative_to_the_project_as_for_dvc(
        self, lab: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(lab / "videos")
        monkeypatch.setenv("HARCACHE_VIDEOS", "elsewhere")
        assert self._harcache("index", "mine").stderr.splitlines()[-1].startswith("Error: elsewhere/mine is")

    def test_several_typed_paths_are_all_relative_to_where_they_were_typed(
        self, lab: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(lab / "videos")
        seen: list[object] = []
        monkeypatch.setattr(
            "harcache.commands.cli.evaluate.run_stage", lambda *what, **_: seen.extend(what) or {}
        )
        given = ["--checkpoint", "a.pt", "--checkpoint", "/b.pt", "--out", "c"]
        assert self._harcache("evaluate", "mine", *given).exit_code == 0
        assert seen[1:] == [(lab / "videos" / "a.pt", Path("/b.pt")), None, lab / "videos" / "c", False]

    def test_datasets_are_completed_there_too(self, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(lab / "videos")
        completion = ShellComplete(main, {}, "harcache", "_HARCACHE_COMPLETE")
        assert [one.value for one in completion.get_completions(["detect"], "")] == ["mine"]

    @pytest.mark.parametrize("command", ["index mine", "report mine", "cache info mine", "preview mine"])
    def test_outside_of_any_project_one_line_names_init(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        done = self._harcache(*command.split())
        assert done.exit_code == 1
        assert re.fullmatch(r"Error: .* is not in a project: .* `harcache init`\n", done.stderr)

    def test_caches_without_a_project_are_read_where_they_lie(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "data" / "mine").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert "is not in a project" not in self._harcache("cache", "info", "mine").stderr

    @pytest.mark.parametrize("command", ["params", "init --help", "bench --help"])
    def test_commands_that_need_no_project_work_anywhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        done = self._harcache(*command.split())
        assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize("way", [["-m", "harcache"], [str(ROOT / "cli.py")]], ids=["module", "file"])
def test_python_creates_projects_as_the_console_script_does(tmp_path: Path, way: list[str]) -> None:
    done = subprocess.run([sys.executable, *way, "init", "lab"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("lab: created dvc.yaml, params.yaml, ")
    inside = [sys.executable, *way, "index", "mine"]
    done = subprocess.run(inside, cwd=tmp_path / "lab", capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "Error: videos/mine is not a folder: put the dataset's videos there\n"


def test_the_file_alone_says_how_to_install_what_it_needs(tmp_path: Path) -> None:
    # Without site-packages, as in a Python that harcache is not installed in.
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "cli.py"), "index", "x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"Error: harcache is not installed in .*; run `make setup` in .*\n", done.stderr)


def test_a_new_repository_has_a_commit_so_that_training_can_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also for someone who has never told Git their name.
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    module.init(tmp_path / "lab", module.DEMO)
    listed = succeeded(tmp_path / "lab", "git", "ls-tree", "-r", "--name-only", "HEAD").split()
    assert {".dvc/config", "dvc.yaml", "params.yaml"} <= set(listed)
    assert succeeded(tmp_path / "lab", "git", "status", "--porcelain") == ""

"""Every command, snippet, path and link of README.md and docs is tried, on a tiny demo that was trained.

Commands stand in ``sh`` blocks or between backticks. A comment above a block, or above a page's title,
``<!-- needs: … -->``, says why commands are only parsed, and ``<!-- run by: FILE -->`` which test runs them.
"""

import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from harcache.cli import main
from harcache.models.networks.epam_net import EPAMNet
from harcache.pipeline.params import load_params, to_mapping
from harcache.pipeline.video.frames import read_frames
from harcache.pipeline.video.writing import write_video
from harcache.stages.shared.workspace import Workspace
from tests import projects
from tests.tiny_demo import PARAMS, copy_of

_ROOT = Path(__file__).parents[2]
_PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (_ROOT / "docs").glob("*.md")))
_PROGRAMS = ("harcache", "dvc", "make", "python", "pip", "dask", "torchrun", "srun", "jq")
_COMMAND = re.compile(rf"(eval |([A-Z][A-Z_]*=\S+ )*({'|'.join(_PROGRAMS)}) )")
_MARK = re.compile(r"<!-- (needs|run by): (.+) -->")
_SECTIONS = ("index", "detect", "pose", "crop", "frames", "heatmap", "rgb")
_SECTION = re.compile(rf"({'|'.join(_SECTIONS)}): \{{")
_MISSING = "NTU_RGBD_samples_with_missing_skeletons.txt"
_STAND_INS = {
    "DATASET": "demo",
    "<dataset>": "mine",
    "NETWORK": "pose",
    "ADDRESS": "tcp://node1:8786",
    "SECONDS": "60",
    "…": "cache info demo",
}
# Writes down what bash made of a line: variables that matter, the program, its words.
_STUB = """#!/bin/bash
words=()
for name in ${!HARCACHE_@} ${!_HARCACHE_@}; do words+=("$name=${!name}"); done
echo "$(printf '%q ' "${words[@]}" "${0##*/}" "$@")" >> "$WRITTEN"
"""


@dataclass(frozen=True)
class _Piece:
    """A fenced block, whose ``kind`` is its language, or what stands between backticks, kind "inline"."""

    place: str
    kind: str
    text: str
    mark: tuple[str, str] | None  # ("needs", why) or ("run by", file)


def _pieces(page: str, text: str) -> Iterator[_Piece]:
    """Give what can be tried of a Markdown page, in its order."""
    whole, mark, block = None, None, list[tuple[int, str]]()
    fence = None
    for number, line in enumerate([*text.splitlines(), ""], 1):
        bare = line.strip()
        if fence is not None:
            if bare == "```":
                kind, lines, first = fence
                yield _Piece(f"{page}:{first}", kind, textwrap.dedent("\n".join(lines)), mark or whole)
                fence, mark = None, None
            else:
                fence[1].append(line)
        elif bare.startswith("```"):
            yield from _inline(page, block, whole)
            fence, block = (bare[3:], [], number + 1), []
        elif found := _MARK.fullmatch(bare):
            mark = (found[1], found[2])
        elif bare:
            if bare.startswith("# ") and mark:
                whole, mark = mark, None
            block.append((number, line))
        else:
            yield from _inline(page, block, mark or whole)
            mark, block = None if block else mark, []


def _inline(page: str, block: Sequence[tuple[int, str]], mark: tuple[str, str] | None) -> Iterator[_Piece]:
    text = "\n".join(line.strip() for _, line in block)
    for found in re.finditer(r"`([^`]+)`", text):
        number = block[text[: found.start()].count("\n")][0]
        yield _Piece(f"{page}:{number}", "inline", found[1].replace("\n", " "), mark)


@functools.cache
def _of(page: str) -> tuple[_Piece, ...]:
    return tuple(_pieces(page, (_ROOT / page).read_text(encoding="utf-8")))


def _harcache(*arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, arguments, prog_name="harcache")


def _ends_well(*arguments: str, **environment: str) -> None:
    done = _harcache(*arguments, **environment)
    assert done.exit_code == 0, f"{shlex.join(arguments)}\n{done.output}{done.exception!r}"


@functools.lru_cache
def _succeeded(*arguments: str, **environment: str) -> None:
    """Run a command that must end well; once, however often it is written."""
    _ends_well(*arguments, **environment)


def _parsed(arguments: Sequence[str]) -> None:
    """Have click read a command line, and run nothing of it."""
    with mock.patch.object(click.Command, "invoke", lambda command, context: None):
        _ends_well(*arguments)


def _is_name(arguments: Sequence[str]) -> bool:
    """Whether these words only name a command, which needs more to be run."""
    command: click.Command = main
    for word in arguments:
        inner = command.commands.get(word) if isinstance(command, click.Group) else None
        if inner is None:
            return False
        command = inner
    return isinstance(command, click.Group) or any(one.required for one in command.params)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that gives the commands which bash makes of a text, as words."""
    folder = tmp_path_factory.mktemp("shell")
    for program in _PROGRAMS:
        (folder / program).write_text(_STUB)
        (folder / program).chmod(0o755)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    (folder / "dvc.lock").touch()

    def read(text: str) -> list[list[str]]:
        log = folder / "written"
        log.write_text("")
        environment = {"PATH": f"{folder}:/usr/bin:/bin", "WRITTEN": str(log), "HOME": str(folder)}
        done = subprocess.run(
            ["bash", "-e", "-c", text], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stderr}"
        return [shlex.split(line) for line in log.read_text().splitlines()]

    return read


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    """The tiny demo's params.yaml, and what the docs call other datasets."""
    demo = {name: section for name, section in to_mapping(PARAMS).items() if name in _SECTIONS}
    training = to_mapping(PARAMS)["train"]
    imported = {"backend": "import", "source": "poses/hmdb51.h5", "max_persons": 2}
    return {
        "datasets": {
            "demo": demo,
            "mine": demo | {"index": {"layout": "folder"}},
            "ntu60": demo | {"index": {"layout": "ntu60", "missing_skeletons": _MISSING}},
            "hmdb": demo | {"index": {"layout": "poses"}, "detect": {"backend": "none"}, "pose": imported},
        },
        "training": {
            "demo": training,
            "mine": training | {"protocol": "default"},
            "ntu60": training,
            "hmdb": training,
        },
    }


@pytest.fixture(scope="module")
def project(trained: Workspace, params: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny demo as `make demo` leaves it, and stand-ins for the files that the docs speak of."""
    project = projects.new_project(tmp_path_factory.mktemp("docs") / "project", params)
    copy_of(trained, project)
    videos = sorted((project / "videos" / "demo").glob("*_rgb.mp4"))
    for name in ("mine/wave/a.mp4", "mine/push/b.mp4", "mine/push/c.mp4", "../holiday/a.mp4", "../walk.mp4"):
        _cut(videos[0], project / "videos" / name)
    for video in videos[::2]:
        _cut(video, project / "videos" / "ntu60" / "nturgb+d_rgb" / video.name)
    (project / "videos" / "ntu60" / _MISSING).write_text("S001C002P005R002A008\n")
    network = project / "data" / "demo" / "training" / "epam" / "network.pt"
    shutil.copy(network, project)
    # The released implementation's convolutions are 3-D.
    state = EPAMNet(60, width=8, rgb_blocks=(1, 1, 1), pose_blocks=(1, 1, 1)).state_dict()
    released = {name: value.unsqueeze(2) if value.ndim == 4 else value for name, value in state.items()}
    torch.save({"model_state_dict": released}, project / "epam_net_ntu60_xsub.pth")
    projects.commit_all(project)
    with _inside(project):
        for command in (
            *("evaluate demo", "report demo", "poses export demo --out ntu60_hrnet.pkl"),
            "poses import ntu60_hrnet.pkl --out poses/hmdb51.h5",
        ):
            _succeeded(*command.split())
        _run_as_dvc("repro", "report@mine", "report@ntu60")
    return project


def _cut(video: Path, path: Path) -> None:
    """Make a video of the first frames of another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, read_frames(video, 0, 12), fps=30)


@functools.lru_cache
def _run_as_dvc(*words: str) -> None:
    """Run a command of DVC; in place of ``repro`` the commands of the stages that it comes to."""
    from dvc.cli import main as dvc
    from dvc.cli.parser import get_main_parser
    from dvc.repo import Repo
    from networkx import dfs_postorder_nodes

    if words[0] != "repro":
        assert dvc(list(words)) == 0, words
        return
    targets = get_main_parser().parse_args(words).targets or []
    with Repo() as repo:
        # With no target it is all datasets, which are named one by one elsewhere.
        asked = [stage for target in targets for stage in repo.stage.collect(target)]
        stages = [each for stage in asked for each in dfs_postorder_nodes(repo.index.graph, stage)]
    for stage in stages:
        _succeeded(*stage.cmd.removeprefix("exec harcache ").split())


@contextmanager
def _inside(project: Path) -> Iterator[None]:
    """Where commands run: in the project's folder, without the settings of the outside."""
    with mock.patch.dict(os.environ, projects.environment(project), clear=True), chdir(project):
        yield


def _named(text: str) -> str:
    """Put something that is there for what a reader would put in."""
    for name, stand_in in _STAND_INS.items():
        text = text.replace(name, stand_in)
    return text


def _try(words: Sequence[str], piece: _Piece) -> None:
    """Run one command, or parse it where its piece is marked."""
    environment = dict(word.split("=", 1) for word in words if re.match(r"_?HARCACHE_\w+=", word))
    program, *arguments = words[len(environment) :]
    called = [number for number, word in enumerate(words) if Path(word).name == "harcache"]
    if called:
        arguments = list(words[called[0] + 1 :])
        if piece.kind == "inline" and not environment and _is_name(arguments):
            _parsed([*arguments, "--help"])
        elif piece.mark:
            _parsed(arguments)
        else:
            _succeeded(*arguments, **environment)
    elif program == "dvc":
        _run_as_dvc(*arguments)
    elif program == "make":
        subprocess.run(["make", "--dry-run", *arguments], cwd=_ROOT, check=True, capture_output=True)
    elif program == "pip":
        extras = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert re.fullmatch(r"harcache\[(\w+)\]", arguments[-1])[1] in extras  # type: ignore[index]
    elif program == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1])
    elif program != "jq" and piece.kind == "sh":
        assert piece.mark, f"say by a mark why nothing runs {shlex.join(words)}"


def _check_parameters(text: str, params: dict[str, Any], folder: Path) -> None:
    """Read parameters as a page shows them: whole files, some sections of a dataset, or datasets by name."""
    shown = yaml.safe_load(text)
    datasets, training = params["datasets"], params["training"]
    if shown.keys() <= set(_SECTIONS):
        shown = {"datasets": {"demo": shown}}
    elif not shown.keys() <= {"datasets", "training", "amfi"}:
        shown = {"datasets": shown}
    own = {name: datasets["demo"] | sections for name, sections in shown.get("datasets", {}).items()}
    for sections in own.values():
        # Either of the two is shown alone: poses that are there already want no boxes.
        if sections["pose"]["backend"] in ("import", "kinect"):
            sections["detect"] = {"backend": "none"}
        elif sections["detect"]["backend"] == "none":
            sections["pose"] = datasets["hmdb"]["pose"]
    networks = {"training": training | shown.get("training", {}), "amfi": shown.get("amfi", {})}
    content = {"datasets": datasets | own, **networks}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    for name in (*own, *shown.get("training", {}), *shown.get("amfi", {})):
        load_params(folder / "params.yaml", dataset=name)


# Some sixty commands, two datasets built and trained among them.
@pytest.mark.slow
@pytest.mark.parametrize("page", _PAGES)
def test_a_page_s_commands_and_snippets_do_what_it_says(
    page: str, project: Path, params: dict[str, Any], written: Any, tmp_path: Path
) -> None:
    with _inside(project):
        for piece in _of(page):
            if piece.mark and piece.mark[0] == "run by":
                assert (_ROOT / piece.mark[1]).is_file(), piece
            if piece.kind == "sh" or (piece.kind == "inline" and _COMMAND.match(piece.text)):
                for words in written(_named(piece.text)):
                    _try(words, piece)
            elif piece.mark:
                continue
            elif piece.kind == "python":
                exec(compile(piece.text, piece.place, "exec"), {})
            elif piece.kind == "yaml" or _SECTION.match(piece.text):
                _check_parameters(piece.text, params, tmp_path)
        named = [piece for piece in _of(page) if re.match(r"(data|metrics|report)/demo[\w./-]*$", piece.text)]
        assert [piece for piece in named if not Path(piece.text).exists()] == []


@pytest.mark.parametrize("page", _PAGES)
def test_blocks_say_what_they_are(page: str) -> None:
    """Commands that stand in a block without a language would go untried."""
    for piece in _of(page):
        assert piece.kind in ("inline", "sh", "python", "yaml", ""), piece
        if piece.kind == "":
            assert not [line for line in piece.text.splitlines() if _COMMAND.match(line)], piece


def test_a_command_that_is_not_there_and_a_wrong_option_are_found() -> None:
    for arguments in (["detec", "demo"], ["detect", "demo", "--worker", "x"], ["preview"]):
        with pytest.raises(AssertionError, match="Error: "):
            _parsed(arguments)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", _PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (_ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (_ROOT / page).parent / file if file else _ROOT / page
        assert path.exists(), f"{page}: {target}"
        headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in map(_anchor, headings), f"{page}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = (_ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", index))
    assert linked == {path.name for path in (_ROOT / "docs").glob("*.md")} - {"README.md"}

"""Creates a project: a folder with its pipeline, parameters, and Git and DVC repositories.

Nothing that is there is overwritten. The pipeline is the repository's own dvc.yaml; a project has a copy of
it, so that an update of harcache changes no project.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.layers import require
from harcache.pipeline.base.project import SHIPPED

__all__ = ["DEMO", "LAYOUTS", "Created", "draw_demo", "init", "params_text"]

DEMO = "demo"

_GIT, _DVC = "a Git repository", "a DVC repository"
_TEMPLATES = Path(__file__).parent / "templates"
_STANDARD = "extraction/standard.yaml"
_SETTINGS = """[core]
    analytics = false
    autostage = false
    check_update = false
"""


@dataclass(frozen=True)
class _Parts:
    """What a layout's params.yaml is made of beside its index, and how its project goes on."""

    training: str
    extraction: str = _STANDARD
    amfi: str = "training/no-amfi.yaml"
    dataset: str = ""  # its name, where it is not the layout's
    start: str = "put the videos below videos/{dataset}, look through params.yaml, then run `dvc repro`"


LAYOUTS: Mapping[str, _Parts] = {
    "folder": _Parts("training/small.yaml", dataset="mine"),
    "ntu60": _Parts("ntu60.yaml"),
    "ntu120": _Parts("ntu120.yaml"),
    "pku_mmd": _Parts("pku_mmd.yaml"),
    "toyota_smarthome": _Parts("toyota_smarthome.yaml"),
    "utd_mhad": _Parts("training/none.yaml", amfi="amfi/utd_mhad.yaml"),
    "poses": _Parts(
        "training/small.yaml",
        "extraction/import.yaml",
        dataset="mine",
        start="import poses into poses/mine.h5, then run `dvc repro heatmap@mine`",
    ),
}
"""The layouts that a project can be created for, beside the demo."""


@dataclass(frozen=True)
class Created:
    """What was made in a project's folder, what was there already, each by name, and what to do next."""

    folder: Path
    made: tuple[str, ...]
    kept: tuple[str, ...]
    next: str

    def __str__(self) -> str:
        lines = [f"{self.folder}: created {', '.join(self.made)}"] if self.made else []
        lines += [f"{self.folder}: kept {', '.join(self.kept)}"] if self.kept else []
        return "\n".join([*lines, f"next, in {self.folder.resolve()}: {self.next}"])


def init(folder: Path, layout: str = "folder") -> Created:
    """Make ``folder`` a project for a dataset of ``layout``, one of `LAYOUTS` or `DEMO`.

    Files and repositories that are there stay as they are. The demo's videos are not drawn: see `draw_demo`.
    Raises HarcacheError, before anything is written, where DVC is not installed (MissingPartError), and
    where the folder's dvc.yaml or params.yaml are another program's.
    """
    require("dvc")
    _check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made, kept = [], []
    for name, text in _contents(layout).items():
        if _write_new(folder / name, text):
            made.append(name)
        else:
            kept.append(name + _difference(folder / name, text))
    for name, new in ((_GIT, _init_git(folder)), (_DVC, _init_dvc(folder))):
        if new is not None:
            (made if new else kept).append(name)
    if _GIT in made:
        _commit(folder, made)
    return Created(folder, tuple(made), tuple(kept), _next(layout))


def draw_demo(folder: Path) -> int:
    """Draw the videos of the demo's project in ``folder``; return how many were missing.

    Videos of another demo that lie there are kept, all of them.
    """
    # It loads OpenCV, which other projects need not have.
    from harcache.pipeline.datasets.demo import DemoSpec, generate_demo, holds_other_demo

    videos = folder / "videos" / DEMO
    return 0 if holds_other_demo(videos, DemoSpec()) else generate_demo(videos, DemoSpec())


def _contents(layout: str) -> dict[str, str]:
    """Return the text of each file of a new project."""
    return {
        "dvc.yaml": _shipped("dvc.yaml"),
        "params.yaml": params_text(layout),
        ".dvcignore": _shipped(".dvcignore"),
        ".gitignore": (_TEMPLATES / "gitignore").read_text(encoding="utf-8"),
    }


def _next(layout: str) -> str:
    if layout == DEMO:
        return "run `dvc repro`"
    parts = LAYOUTS[layout]
    return parts.start.format(dataset=parts.dataset or layout)


def params_text(layout: str) -> str:
    """Return the params.yaml of a new project, with comments; ``layout`` is one of `LAYOUTS`, or `DEMO`."""
    if layout == DEMO:
        return _shipped("params.yaml")
    parts = LAYOUTS[layout]
    pieces = ["head.yaml", f"layouts/{layout}.yaml", parts.extraction, "caches.yaml"]
    texts = ["".join(map(_piece, pieces)), _piece(parts.training), _piece(parts.amfi)]
    return "\n".join(texts)


def _piece(name: str) -> str:
    """Return a template, or a preset by its name in the folder presets."""
    template = _TEMPLATES / name
    if template.is_file():
        return template.read_text(encoding="utf-8")
    # Where a network starts is another dataset's checkpoint, which a new project does not have.
    return re.sub(r"^( +)(init: \S+)\}$", r"\1# \2\n\1}", _shipped(f"presets/{name}"), flags=re.MULTILINE)


def _shipped(name: str) -> str:
    return (SHIPPED / name).read_text(encoding="utf-8")


def _check_free(folder: Path) -> None:
    """Raise HarcacheError where the folder is a file, or the home of another program's pipeline."""
    if folder.exists() and not folder.is_dir():
        raise HarcacheError(f"{folder} is a file; name a folder for the project")
    for name, mark in (("dvc.yaml", r"harcache index"), ("params.yaml", r"^datasets:")):
        path = folder / name
        if path.is_file() and not re.search(mark, path.read_text(errors="replace"), re.MULTILINE):
            raise HarcacheError(
                f"{path} is not harcache's; create the project in a folder of its own, such as "
                f"{folder / 'harcache'}"
            )


def _write_new(path: Path, text: str) -> bool:
    """Write a file unless there is one; return whether it was written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _difference(path: Path, text: str) -> str:
    """Return, for people, what a file that was kept lacks of ``text``."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if path.name == "dvc.yaml" and lines != text.splitlines():
        return " (of another version of harcache; to take this version's, delete it and run this again)"
    lacking = [line for line in text.splitlines() if line not in lines and not line.startswith("#")]
    if path.name in (".gitignore", ".dvcignore") and lacking:
        return f" (add to it: {' '.join(lacking)})"
    return ""


def _init_git(folder: Path) -> bool | None:
    """Make the folder a Git repository unless it lies in one; return whether it did, None without Git."""
    if shutil.which("git") is None:
        return None
    if _git_root(folder) is not None:
        return False
    _run(folder, "git", "init", "--quiet")
    return True


def _commit(folder: Path, made: Sequence[str]) -> None:
    """Commit what was written: DVC's logs of training name a commit, and fail where there is none yet."""
    files = [name for name in made if name not in (_GIT, _DVC)]
    _run(folder, "git", "add", "--", *files, *([".dvc"] if _DVC in made else []))
    asked = subprocess.run(["git", "var", "GIT_COMMITTER_IDENT"], cwd=folder, capture_output=True)
    named = asked.returncode == 0
    # Someone who has not told Git their name yet can still begin.
    stand_in = () if named else ("-c", "user.name=harcache", "-c", "user.email=harcache@localhost")
    _run(folder, "git", *stand_in, "commit", "--quiet", "--message", "Start a harcache project")


def _git_root(folder: Path) -> Path | None:
    if shutil.which("git") is None:
        return None
    asked = ["git", "rev-parse", "--show-toplevel"]
    found = subprocess.run(asked, cwd=folder, capture_output=True, text=True)
    return Path(found.stdout.strip()) if found.returncode == 0 else None


def _init_dvc(folder: Path) -> bool:
    """Make the folder a DVC repository, one of its own where it lies inside a Git repository."""
    if (folder / ".dvc").is_dir():
        return False
    root = _git_root(folder)
    options = ["--no-scm"] if root is None else [] if root == folder.resolve() else ["--subdir"]
    _run(folder, sys.executable, "-m", "dvc", "init", "--quiet", *options)
    settings = folder / ".dvc" / "config"
    own = settings.read_text(encoding="utf-8") if settings.is_file() else ""
    settings.write_text(own.replace("[core]\n", _SETTINGS, 1) if "[core]" in own else _SETTINGS + own)
    return True


def _run(folder: Path, *command: str) -> None:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise HarcacheError(
            f"`{' '.join(map(os.path.basename, command))}` failed in {folder} ({said[:300]}); correct that, "
            "then run this again"
        )

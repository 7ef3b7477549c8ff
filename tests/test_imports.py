"""Who may import whom: cli, commands, stages, then models and cache, then pipeline and its rooms."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml

_ROOT = Path(__file__).parent.parent
_NAME = "harcache"
# What the packages may import of each other beside themselves.
_PACKAGES = {
    "pipeline": (),
    "cache": ("pipeline",),
    "models": ("pipeline",),
    "stages": ("models", "cache", "pipeline"),
    "commands": ("benchmarks", "stages", "models", "cache", "pipeline"),
    "benchmarks": ("models", "cache", "pipeline"),
    "scripts": ("models", "cache", "pipeline"),
}
# Of pipeline, what knows no work and no dataset: all that models and caches need of it.
_FOR_ALL = ("pipeline.base", "pipeline.params", "pipeline.skeletons")
# What the rooms of pipeline may import of each other.
_ROOMS = {
    "base": (),
    "clips": ("base",),
    "params": ("base", "skeletons"),
    "skeletons": ("base",),
    "video": ("base", "clips"),
    "work": ("base", "clips", "params"),
    "datasets": ("base", "clips", "params", "skeletons", "video"),
}


def _files() -> Iterator[Path]:
    for package in _PACKAGES:
        yield from sorted((_ROOT / package).rglob("*.py"))
    yield _ROOT / "cli.py"


def _imports(path: Path, late: bool = True) -> Iterator[str]:
    """Give the modules of this project that a file imports, without the project's name.

    ``late``: also those that functions import. What only type checkers import doesn't count.
    """
    skipped: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        typing_only = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        if typing_only or (not late and isinstance(node, ast.FunctionDef)):
            skipped.update(ast.walk(node))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno} is relative, which this test can't follow"
            names = [_module(str(node.module), alias.name) for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            assert first not in _PACKAGES and first != "cli", f"{path}: '{name}' lacks the project's name"
            if first == _NAME:
                yield rest


def _module(package: str, name: str) -> str:
    """``from package import name`` names a module of the package or something in it."""
    path = _ROOT.joinpath(*package.split(".")[1:], name)
    return f"{package}.{name}" if path.is_dir() or path.with_suffix(".py").is_file() else package


def _allowed(importer: str, imported: str) -> bool:
    """Tell whether the module ``importer`` may import ``imported``; both without the project's name."""
    package, target = importer.partition(".")[0], imported.partition(".")[0]
    if package == "cli":
        return True
    if package == target == "pipeline":
        room, other = importer.split(".")[1], imported.split(".")[1]
        return room == other or other in _ROOMS[room]
    if package in ("cache", "models") and target == "pipeline":
        return imported.startswith(_FOR_ALL)
    return target == package or target in _PACKAGES[package]


def _dotted(path: Path) -> str:
    return path.relative_to(_ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


@pytest.mark.parametrize("path", list(_files()), ids=_dotted)
def test_a_module_imports_only_what_its_place_allows(path: Path) -> None:
    assert [name for name in _imports(path) if not _allowed(_dotted(path), name)] == []


def _cycle(imports: dict[str, list[str]]) -> list[str]:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_imports_go_in_a_circle() -> None:
    found = {
        _dotted(path): [name for name in _imports(path, late=False) if name != _dotted(path)]
        for path in _files()
        if "scripts" not in path.parts
    }
    assert _cycle(found) == []
    assert sum(map(len, found.values())) > 300


def test_every_room_of_the_pipeline_has_its_rules() -> None:
    rooms = {
        path.stem for path in (_ROOT / "pipeline").iterdir() if path.stem not in ("__init__", "__pycache__")
    }
    assert rooms == set(_ROOMS)


def test_the_stages_are_the_modules_of_their_folder_and_nothing_else_is() -> None:
    stages = yaml.safe_load((_ROOT / "dvc.yaml").read_text())["stages"].values()
    commands = [stage.get("do", stage)["cmd"] for stage in stages]
    named = {word for command in commands for word in re.findall(r"harcache (\w+)", command)}
    assert {path.stem for path in (_ROOT / "stages").glob("*.py")} - {"__init__"} == named


def test_a_circle_is_seen() -> None:
    assert _cycle({"a": ["b"], "b": ["c"], "c": ["a"]}) != []


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("cache.codecs", "import harcache.models.checkpoints"),
        ("cache.codecs", "from harcache.pipeline.work import parts"),
        ("models.checkpoints", "from harcache.cache.clip_store import open_store"),
        ("pipeline.work.plan", "from harcache.stages import crop"),
        ("pipeline.base.files", "from harcache.pipeline.clips import Clip"),
        ("pipeline.video.frames", "from harcache.pipeline.datasets.truth import Truth"),
        ("stages.crop", "import harcache.cli"),
        ("stages.report", "from harcache.commands import preview"),
        ("benchmarks.loader", "from harcache.stages import crop"),
    ],
)
def test_a_forbidden_import_is_seen(tmp_path: Path, importer: str, line: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"def late() -> None:\n    {line}\n")
    assert [_allowed(importer, name) for name in _imports(path)] == [False]


def test_an_import_without_the_projects_name_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("from cache.codecs import JpegCodec\n")
    with pytest.raises(AssertionError, match="lacks the project's name"):
        list(_imports(path))


def test_an_allowed_import_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "from harcache.pipeline.base import errors\nfrom harcache.pipeline.params import X\nimport numpy\n"
    )
    assert [_allowed("cache.codecs", name) for name in _imports(path)] == [True, True]

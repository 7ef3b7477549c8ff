"""Who may import whom: cli, stages, then models, cache and pipeline, which know nothing of each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_PACKAGES = ("cache", "models", "pipeline", "stages")
_OWN = {*_PACKAGES, "cli"}
_SHARED = {f"pipeline.{name}" for name in ("clips", "errors", "files", "keypoints", "params", "processes")}
_LIBRARY = [path for package in _PACKAGES for path in sorted((_ROOT / package).rglob("*.py"))]
_OTHERS = [path for folder in ("scripts", "benchmarks") for path in sorted((_ROOT / folder).rglob("*.py"))]


def _imports(path: Path) -> Iterator[str]:
    """Give the full names of what a file imports from this project, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno} is relative, which this test can't follow"
            names = [_module(str(node.module), alias.name) for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in _OWN)


def _module(package: str, name: str) -> str:
    """``from package import name`` names a module of the package or something in it."""
    path = _ROOT.joinpath(*package.split("."), name)
    return f"{package}.{name}" if path.is_dir() or path.with_suffix(".py").is_file() else package


def _allowed(package: str, imported: str) -> bool:
    target = imported.partition(".")[0]
    if package == "stages":
        return target != "cli"
    return target == package or imported in _SHARED


def _name(path: Path) -> str:
    return path.relative_to(_ROOT).as_posix()


@pytest.mark.parametrize("path", _LIBRARY, ids=_name)
def test_a_module_imports_only_what_its_package_may(path: Path) -> None:
    package = _name(path).partition("/")[0]
    assert [name for name in _imports(path) if not _allowed(package, name)] == []


@pytest.mark.parametrize("path", _OTHERS, ids=_name)
def test_nothing_but_the_command_line_and_the_tests_imports_stages(path: Path) -> None:
    assert [name for name in _imports(path) if name.partition(".")[0] in ("stages", "cli")] == []


def test_the_command_line_is_over_the_stages() -> None:
    assert any(name.startswith("stages") for name in _imports(_ROOT / "cli.py"))


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("cache", "import models.weights"),
        ("cache", "from pipeline import parts"),
        ("models", "from cache.clip_store import open_store"),
        ("pipeline", "from stages import crop"),
        ("stages", "import cli"),
    ],
)
def test_a_forbidden_import_is_seen(tmp_path: Path, package: str, line: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"def late() -> None:\n    {line}\n")
    assert [_allowed(package, name) for name in _imports(path)] == [False]


def test_an_allowed_import_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("from pipeline import errors\nfrom pipeline.clips import Clip\nimport numpy\n")
    assert [_allowed("cache", name) for name in _imports(path)] == [True, True]

"""How long modules and functions may be, so that each can be read as a whole."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_FOLDERS = ("benchmarks", "cache", "commands", "models", "pipeline", "scripts", "stages")
_LONGEST_MODULE, _LONGEST_FUNCTION = 400, 60


def _too_long(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    if text.count("\n") > _LONGEST_MODULE:
        yield f"{path}: {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > _LONGEST_FUNCTION:
                yield f"{path}: {node.name} has {lines} lines"


def test_no_module_and_no_function_is_too_long() -> None:
    paths = [path for folder in _FOLDERS for path in sorted((_ROOT / folder).rglob("*.py"))]
    assert len(paths) > 150
    assert [found for path in [*paths, _ROOT / "cli.py"] for found in _too_long(path)] == []


@pytest.mark.parametrize(
    ("text", "found"), [("x = 1\n" * 401, "401 lines"), ("def f():\n" + "    x = 1\n" * 60, "f has 61 lines")]
)
def test_what_is_too_long_is_seen(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "module.py").write_text(text)
    assert [line.partition(": ")[2] for line in _too_long(tmp_path / "module.py")] == [found]

"""Rivals are timed in turns, warm-up rounds are left out, and results are written as JSON."""

import json
from pathlib import Path

from harcache.benchmarks.timing import side_by_side, write_results


def test_rivals_take_turns_and_warm_up_does_not_count() -> None:
    calls: list[str] = []
    found = side_by_side({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert set(found) == {"a", "b"}
    assert all(0 <= seconds < 1 for seconds in found.values())


def test_results_are_written_where_a_file_is_named(tmp_path: Path) -> None:
    write_results(None, {"a": 1})
    write_results(tmp_path / "new" / "results.json", {"a": 1.5})
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == {"a": 1.5}

"""The benchmark of scale runs, at a size that says nothing, and shows what it measured."""

from pathlib import Path

import pytest

from harcache.benchmarks import scale


# Fresh processes for each figure, and DVC three times.
@pytest.mark.slow
def test_what_grows_with_the_clips_is_measured_at_two_sizes_outside_of_any_project(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    results = scale.measure(clips=320, shards=3)
    assert all(value >= 0 for name, value in results.items() if not name.endswith(".growth"))
    for task in ("open", "sample", "plan"):
        assert {f"{task}.{kind}" for kind in ("seconds", "seconds.part", "bytes", "growth")} <= results.keys()
    assert results["index.clips"] == 320
    assert results["index.bytes.part"] > 0
    table = scale.as_table(results).splitlines()
    assert table[0] == f"320 clips, {results['rows'] / 1e6:.1f} million rows (and 20 clips):"
    assert table[-2].startswith("indexing 320 small videos: ")
    assert table[-1].startswith("dvc repro with nothing to do, 3 shards a store: ")

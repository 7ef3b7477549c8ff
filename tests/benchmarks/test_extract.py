"""The extraction's benchmark times both ways on one video and says where the time goes."""

import json

import pytest

from harcache.benchmarks import extract
from harcache.benchmarks.timing import write_results


# HRNet-W32 on a CPU takes about half a second a person.
@pytest.mark.slow
def test_both_ways_of_both_stages_are_measured_and_written(tmp_path, monkeypatch):
    size = extract._Size(clips=2, frames=1, slow=1, rounds=1)
    monkeypatch.setattr(extract, "_POSE", {"cpu": size})
    monkeypatch.setattr(extract, "_DETECT", {"cpu": size})
    results = extract.measure(threads=2)
    write_results(tmp_path / "out.json", results)
    written = json.loads((tmp_path / "out.json").read_text())
    for stage in ("pose", "detect"):
        for way in ("batched", "per_frame", "network"):
            assert written[f"{stage}.{way}"] > 0
        shares = written[f"{stage}.shares"]
        assert 0 < shares["network"] <= 1
        assert shares["starved"] + shares["start"] + shares["finish"] <= 1
    table = extract.as_table(results)
    assert "persons a second, frame by frame" in table
    assert "frames a second, frame by frame" in table

"""The memory of probes drops what it can't read, whatever that is."""

from pathlib import Path

import pytest

from harcache.pipeline.video.probes import Probed, read_probes, write_probes


@pytest.mark.parametrize(
    "line", ["{", "[]", "[" * 100_000, '{"video":[1],"size":1,"mtime_ns":1,"probe":null}']
)
def test_a_line_that_is_no_probe_is_dropped(tmp_path: Path, line: str) -> None:
    path, known = tmp_path / "probes.jsonl", {"a.mp4": Probed("a.mp4", 1, 2, None, "is empty")}
    write_probes(path, known)
    path.write_text(f"{line}\n{path.read_text()}")
    assert read_probes(path) == known

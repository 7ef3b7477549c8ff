"""What docs/format.md says of the files is so: its example reads a store without the package's help."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harcache import cache
from harcache.cache.array_spec import ArraySpec
from harcache.cache.clip_index import IndexEntry
from harcache.cache.jpeg import decode_jpeg
from harcache.cache.shard_writer import ShardWriter
from harcache.cache.store_paths import shard_path
from harcache.cache.store_writer import create_store, write_index
from harcache.pipeline.base.fingerprints import fingerprint

_TEXT = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
_EXAMPLES = re.findall(r"```python\n(.*?)```", _TEXT, re.DOTALL)
_SHARD_ROWS = 6


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two shards with three clips; the second clip of the index lies in the second shard."""
    spec, path = ArraySpec("frames", (16, 16, 3), "uint8", "jpeg"), tmp_path / "rgb.zarr"
    rng = np.random.default_rng(0)
    create_store(path, [spec], _SHARD_ROWS, {"dataset": "demo"})
    for part in (0, 1):
        with ShardWriter(shard_path(path, spec, part), spec, _SHARD_ROWS) as writer:
            for _ in range(5):
                writer.append(rng.integers(0, 256, (16, 16, 3), np.uint8))
    places = (("a", 0, 0, 3), ("clip ü", 1, 2, 3), ("c", 0, 3, 2))
    write_index(
        path,
        [
            IndexEntry(id, part, start, rows, range(rows), (0, 0, 9, 9), (20, 30))
            for id, part, start, rows in places
        ],
    )
    return path


def test_the_example_without_the_package_gives_the_packages_frames(store: Path, tmp_path: Path) -> None:
    example = _EXAMPLES[-1]
    assert "from harcache import cache" not in example and "zarr" not in re.findall(
        r"^(?:import|from) (\w+)", example, re.M
    )
    for clip in cache.open(store).ids:
        out = tmp_path / clip
        out.mkdir()
        subprocess.run([sys.executable, "-c", example, str(store), clip, str(out)], cwd=tmp_path, check=True)
        frames = cache.open(store).frames(clip)
        found = np.empty_like(frames)
        for path, frame in zip(sorted(out.glob("*.jpg")), found, strict=True):
            decode_jpeg(path.read_bytes(), frame)
        np.testing.assert_array_equal(found, frames)


def test_the_example_without_the_package_finds_damage(store: Path, tmp_path: Path) -> None:
    shard = store / "frames" / "c.1.0.0.0"
    content = bytearray(shard.read_bytes())
    content[-30] ^= 1
    shard.write_bytes(content)
    command = [sys.executable, "-c", _EXAMPLES[-1], str(store), "clip ü", str(tmp_path)]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode != 0 and "AssertionError: damaged" in failed.stderr


def test_every_attribute_and_array_of_a_store_is_told_of(store: Path) -> None:
    attributes = cache.open(store).attributes
    names = [*attributes, *(path.name for path in store.iterdir() if path.is_dir())]
    assert [name for name in names if f"`{name}`" not in _TEXT and f"{name}/" not in _TEXT] == []
    own = {key: value for key, value in attributes.items() if key != "digest"}
    assert attributes["digest"] == fingerprint(own)
    assert f"`format_version` | `harcache.clips`, {attributes['format_version']}" in _TEXT

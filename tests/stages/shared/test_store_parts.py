"""A store that lies on another disk, behind a link, is made anew there."""

from pathlib import Path

import pytest

from harcache import cache
from harcache.cache.array_spec import ArraySpec
from harcache.cache.store_writer import write_index
from harcache.stages.shared.store_parts import StoreSpec, _create


def test_a_store_behind_a_link_is_made_anew_behind_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "rgb.zarr"
    link.symlink_to(tmp_path / "disk")
    for quality in (90, 80):
        arrays = [ArraySpec("frames", (8, 8, 3), "uint8", "jpeg", quality)]
        _create(StoreSpec("rgb", link, arrays, 6, {}), [], {"quality": quality})
    assert "it is made anew" in capsys.readouterr().err
    write_index(link, [])
    assert link.is_symlink() and cache.open(tmp_path / "disk").attributes["quality"] == 80
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "rgb.zarr"]

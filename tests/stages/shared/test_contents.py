"""What the caches hold is told as it is."""

from dataclasses import replace
from pathlib import Path

import pytest

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import DatasetParams
from harcache.stages.shared.contents import info, present
from harcache.stages.shared.workspace import Workspace
from tests.footage import FRAMES, film


@pytest.fixture
def small(tmp_path: Path, params: DatasetParams) -> tuple[DatasetParams, Workspace]:
    """Six clips in three shards."""
    return film(tmp_path, params)


def test_info_tells_clips_rows_bytes_codec_and_classes(small: tuple[DatasetParams, Workspace]) -> None:
    _, workspace = small
    found = info(workspace)
    shards = list((workspace.rgb / "frames").glob("c.*"))
    decoded = 6 * FRAMES * 32 * 32 * 3
    size = sum(path.stat().st_size for path in shards)
    assert found["caches"] == {
        "rgb.zarr": {
            "clips": 6,
            "parts": 3,
            "rows": 6 * FRAMES,
            "bytes": size,
            "decoded_bytes": decoded,
            "ratio": round(decoded / size, 2),
            "codecs": {"frames": "jpeg 95"},
        }
    }
    splits = found["splits"]["default"]
    assert sum(split["clips"] for split in splits.values()) == 6
    assert all(1 <= split["classes"] <= 2 for split in splits.values())
    assert found["stages"]["rgb"] == {"ok": 6, "skipped": 0, "failed": 0}


def test_info_of_every_cache_of_the_demo(demo: Workspace) -> None:
    found = info(demo)
    assert list(found["caches"]) == ["detections", "poses", "heatmaps.zarr", "rgb.zarr"]
    assert {held["clips"] for held in found["caches"].values()} == {6}
    assert len({held["rows"] for held in found["caches"].values()}) == 1
    assert found["splits"]["xsub"] == {
        "test": {"clips": 2, "classes": 2},
        "train": {"clips": 4, "classes": 2},
    }


def test_no_cache_is_left_out(demo: Workspace) -> None:
    assert list(present(demo)) == ["detect", "pose", "heatmap", "rgb"]
    with pytest.raises(HarcacheError, match="has no caches"):
        present(replace(demo, data=demo.data / "nowhere"))

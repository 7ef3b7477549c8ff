"""Making a store: it grows by parts, is refused until it is whole, and never passes for another."""

import shutil
import warnings

import numpy as np
import pytest
import zarr

from harcache.cache.clip_index import IndexEntry
from harcache.cache.clip_store import open_store
from harcache.cache.errors import CacheError, StaleStoreError
from harcache.cache.store_paths import records_dir, shard_path
from harcache.cache.store_writer import create_store, mark_incomplete, write_index
from tests.cache.heatmap_stores import ATTRIBUTES, ENTRIES, HEATMAPS, SHARD_ROWS, entry, make_heatmaps


def test_the_same_clips_give_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        make_heatmaps(tmp_path / name)
    write_index(tmp_path / "second", ENTRIES)
    files = [path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*")]
    assert len(files) == len(list((tmp_path / "second").rglob("*")))
    for file in files:
        if (tmp_path / "first" / file).is_file():
            assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_a_store_grows_by_parts(tmp_path):
    pixels = make_heatmaps(tmp_path, ENTRIES[:1])
    assert open_store(tmp_path).array("volume").shape[0] == SHARD_ROWS
    create_store(tmp_path, HEATMAPS, SHARD_ROWS, ATTRIBUTES)
    write_index(tmp_path, ENTRIES)
    np.testing.assert_array_equal(open_store(tmp_path).heatmaps("ä"), pixels["volume"][9:13])


def test_fewer_clips_delete_no_shard(tmp_path):
    make_heatmaps(tmp_path)
    write_index(tmp_path, ENTRIES[:1])
    assert shard_path(tmp_path, HEATMAPS[0], 1).exists()


def test_a_store_is_incomplete_until_its_index_is_written(tmp_path):
    make_heatmaps(tmp_path)
    create_store(tmp_path, HEATMAPS, SHARD_ROWS, ATTRIBUTES)
    with pytest.raises(CacheError, match="the store is incomplete; run the stage"):
        open_store(tmp_path)


def test_a_crash_while_the_index_is_written_leaves_the_store_incomplete(tmp_path):
    make_heatmaps(tmp_path)
    shutil.rmtree(tmp_path / "box")
    (tmp_path / "box").write_text("in the way")
    with pytest.raises(Exception, match="box"):
        write_index(tmp_path, ENTRIES)
    with pytest.raises(CacheError, match="the store is incomplete"):
        open_store(tmp_path)


def test_a_store_half_created_is_finished(tmp_path):
    create_store(tmp_path, HEATMAPS, SHARD_ROWS, ATTRIBUTES)
    shutil.rmtree(tmp_path / "keypoints")
    make_heatmaps(tmp_path)
    assert len(open_store(tmp_path)) == 3


@pytest.mark.parametrize(
    ("arrays", "shard_rows", "attributes", "message"),
    [
        (HEATMAPS, 9, ATTRIBUTES, "made with shard_rows = 8, but 9 is asked for"),
        (HEATMAPS[:1], SHARD_ROWS, ATTRIBUTES, r"made with arrays\.keypoints = .*, but None is asked for"),
        (HEATMAPS, SHARD_ROWS, {**ATTRIBUTES, "dataset": "ntu60"}, "dataset = 'demo', but 'ntu60' is"),
        (
            HEATMAPS,
            9,
            {**ATTRIBUTES, "parameters": {"size": 7}},
            r"parameters\.size = 6, but 7 is asked for; with shard_rows = 8, but 9 is asked for; run",
        ),
        (HEATMAPS, SHARD_ROWS, {**ATTRIBUTES, "fingerprint": "x"}, "fingerprint = 'abc', but 'x'"),
        (HEATMAPS, SHARD_ROWS, {"dataset": "demo"}, "fingerprint = 'abc', but None"),
    ],
)
def test_a_store_of_other_parameters_is_refused(tmp_path, arrays, shard_rows, attributes, message):
    make_heatmaps(tmp_path)
    with pytest.raises(StaleStoreError, match=message):
        create_store(tmp_path, arrays, shard_rows, attributes)
    assert len(open_store(tmp_path)) == 3


def test_damaged_metadata_are_written_anew_with_the_index(tmp_path):
    make_heatmaps(tmp_path)
    path = tmp_path / "volume" / "zarr.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"clevel": 5', b'"clevel": 7'))
    create_store(tmp_path, HEATMAPS, SHARD_ROWS, ATTRIBUTES)
    write_index(tmp_path, ENTRIES)
    assert path.read_bytes() == content


@pytest.mark.parametrize("damage", ["none", "changed", "gone"])
def test_a_store_marked_incomplete_is_refused_until_its_index_is_made_anew(tmp_path, damage):
    make_heatmaps(tmp_path)
    metadata = tmp_path / "zarr.json"
    content = metadata.read_bytes()
    if damage != "none":
        metadata.unlink()
    if damage == "changed":
        metadata.write_bytes(content.replace(b"abc", b"abd"))
    mark_incomplete(tmp_path)
    with pytest.raises(CacheError, match="no store here" if damage != "none" else "the store is incomplete"):
        open_store(tmp_path)
    create_store(tmp_path, HEATMAPS, SHARD_ROWS, ATTRIBUTES)
    write_index(tmp_path, ENTRIES)
    assert metadata.read_bytes() == content


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("a", 0, 0, 2), entry("a", 0, 2, 2)], "a clip is listed twice"),
        ([entry("a", 0, 7, 2)], "clip 'a' has rows 7 to 9 .* a shard has 8"),
        ([entry("a", 0, 0, 0)], "clip 'a' has rows 0 to 0"),
        ([IndexEntry("a", 0, 0, 2, [1], (0, 0, 1, 1), (1, 1))], "and 1 frame numbers"),
        ([entry("a", 1, 2, 3), entry("b", 1, 0, 3)], "clips 'b' and 'a' overlap in part 1"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(tmp_path, entries, message):
    make_heatmaps(tmp_path)
    with pytest.raises(CacheError, match=message):
        write_index(tmp_path, entries)
    assert len(open_store(tmp_path)) == 3


def test_creating_and_listing_a_store_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_heatmaps(tmp_path)
        (records_dir(tmp_path) / "part-00000.json").write_text("{}")
        zarr.open_group(tmp_path, mode="r").tree()

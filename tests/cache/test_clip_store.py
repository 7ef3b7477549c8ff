"""The clip store: an index that tells the truth, clips found by their ids, and no damage unseen."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harcache import cache
from harcache.cache.clip_index import index_problems
from harcache.cache.clip_store import open_store
from harcache.cache.errors import CacheError, StaleStoreError
from harcache.cache.store_paths import records_dir, shard_path
from harcache.cache.store_writer import create_store, mark_incomplete, write_index
from harcache.pipeline.base.errors import NewerFormatError
from tests.cache.heatmap_stores import (
    ENTRIES,
    HEATMAPS,
    SHARD_ROWS,
    SPECS,
    entry,
    make_heatmaps,
    make_rows,
    write_shard,
)


def test_a_fresh_process_reads_the_pixels_with_zarr_alone_and_without_warnings(tmp_path):
    pixels = make_heatmaps(tmp_path / "heatmaps.zarr")
    records_dir(tmp_path / "heatmaps.zarr").joinpath("part-00000.json").write_text("{}")
    program = """
import sys, zarr
group = zarr.open(sys.argv[1], mode="r")
names = sorted(name for name, _ in group.members(max_depth=None))
rows = slice(group["start"][1], group["start"][1] + group["length"][1])
sys.stdout.buffer.write(" ".join([*names, *group["clip_id"][:]]).encode() + b"|")
sys.stdout.buffer.write(group["volume"][rows].tobytes() + group["frame"][rows].tobytes())
"""
    command = [sys.executable, "-W", "error", "-X", "utf8", "-c", program, str(tmp_path / "heatmaps.zarr")]
    names, read = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout.split(b"|", 1)
    assert names.decode() == ("box clip_id frame image_size keypoints length records start volume b ä a")
    assert read == pixels["volume"][9:13].tobytes() + np.arange(10, 14, dtype=np.int32).tobytes()


def test_a_clip_is_found_by_its_id(tmp_path):
    pixels = make_heatmaps(tmp_path)
    store = cache.open(tmp_path)
    assert (store.ids, len(store)) == (("b", "ä", "a"), 3)
    assert (store.index("ä"), store.rows("ä")) == (1, slice(9, 13))
    np.testing.assert_array_equal(store.heatmaps("ä"), pixels["volume"][9:13])
    np.testing.assert_array_equal(store.keypoints("a"), pixels["keypoints"][3:8])
    np.testing.assert_array_equal(store.array("volume")[store.rows("b")], pixels["volume"][:3])
    np.testing.assert_array_equal(store.frame_numbers("a"), range(10, 15))
    np.testing.assert_array_equal(store.box("a"), np.array([-1.5, 2, 30, 40], np.float32))
    assert store.image_size("a") == (240, 320)
    assert store.attributes["parameters"] == {"size": 6}


def test_frames_are_read_by_clip(tmp_path):
    spec = SPECS["zstd"]
    create_store(tmp_path, [spec], SHARD_ROWS, {})
    write_shard(tmp_path, spec, 0, make_rows(spec, 6))
    write_index(tmp_path, [entry("clip", 0, 2, 4)])
    np.testing.assert_array_equal(cache.open(tmp_path).frames("clip"), make_rows(spec, 6)[2:])


def test_an_open_store_travels_to_another_process(tmp_path):
    pixels = make_heatmaps(tmp_path)
    store = open_store(tmp_path)
    store.heatmaps("a")
    (tmp_path / "store.pickle").write_bytes(pickle.dumps(store))
    program = (
        "import pickle, sys; s = pickle.load(open(sys.argv[1], 'rb')); print(int(s.heatmaps('a').sum()))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "store.pickle")]
    assert int(subprocess.run(command, capture_output=True, check=True).stdout) == pixels["volume"][3:8].sum()


def test_an_unknown_clip_is_named(tmp_path):
    make_heatmaps(tmp_path)
    with pytest.raises(CacheError, match="no clip 'c' among 3"):
        open_store(tmp_path).rows("c")


def test_an_unknown_array_is_named_with_the_nearest(tmp_path):
    make_heatmaps(tmp_path)
    with pytest.raises(CacheError, match=r"no array 'volum' of frames\. Did you mean 'volume'"):
        open_store(tmp_path).reader("volum")


def test_a_store_without_clips_can_be_opened(tmp_path):
    create_store(tmp_path, HEATMAPS, SHARD_ROWS, {})
    write_index(tmp_path, [])
    assert len(open_store(tmp_path)) == 0


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (
            {"dataset": "ntu60"},
            "made with dataset = 'demo', but 'ntu60' is asked for; run the stage that makes",
        ),
        ({"parameters": {"size": 7}}, r"made with parameters\.size = 6, but 7 is asked for"),
        ({"parameters": {"size": 6, "sigma": 0.6}}, r"made with parameters\.sigma = None, but 0\.6"),
    ],
)
def test_a_store_is_not_opened_as_another(tmp_path, expected, message):
    make_heatmaps(tmp_path)
    assert len(open_store(tmp_path, {"dataset": "demo", "parameters": {"size": 6}})) == 3
    with pytest.raises(StaleStoreError, match=message):
        open_store(tmp_path, expected)


def test_a_folder_without_a_store_is_named(tmp_path):
    with pytest.raises(CacheError, match=r"gone\.zarr: no store here"):
        open_store(tmp_path / "gone.zarr")


def test_a_foreign_group_is_refused(tmp_path):
    zarr.create_group(tmp_path)
    with pytest.raises(CacheError, match=r"found format \(None, None\), expected \('harcache.clips', 2\)"):
        open_store(tmp_path)


def _set_version(folder, version):
    metadata = json.loads((folder / "zarr.json").read_text())
    metadata["attributes"]["format_version"] = version
    (folder / "zarr.json").write_text(json.dumps(metadata))


def test_an_older_format_version_is_refused(tmp_path):
    make_heatmaps(tmp_path)
    _set_version(tmp_path, 1)
    with pytest.raises(
        CacheError, match=r"found format \('harcache.clips', 1\), expected \('harcache.clips', 2\); delete"
    ):
        open_store(tmp_path)


def test_a_newer_format_version_is_refused_and_no_advice_is_to_delete_it(tmp_path):
    make_heatmaps(tmp_path)
    _set_version(tmp_path, 3)
    message = r"was written by a newer version of harcache \(format 3, this one reads 2\)"
    for touch in (open_store, mark_incomplete, index_problems):
        with pytest.raises(NewerFormatError, match=message):
            touch(tmp_path)
    assert (tmp_path / "zarr.json").is_file()


@pytest.mark.parametrize("text", ['{"attributes"', "[]", "null", '{"attributes": [1]}', "[" * 100_000])
def test_damaged_metadata_are_named(tmp_path, text):
    make_heatmaps(tmp_path)
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(CacheError, match=r"zarr\.json: damaged"):
        open_store(tmp_path)


_INDEX = ("clip_id", "start", "length", "box", "image_size", "frame")


def _read_all(path) -> None:
    store = open_store(path)
    for name in ("volume", "keypoints"):
        store.read(name, "a")
    store.frame_numbers("a")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bit_of_the_index_or_the_metadata_changes_unseen(tmp_path, data):
    root = tmp_path / "store"
    if not root.exists():
        make_heatmaps(root)
    files = [root / "zarr.json", *(root / name / "zarr.json" for name in ("volume", "keypoints", *_INDEX))]
    files += [path for name in _INDEX for path in (root / name / "c").rglob("*") if path.is_file()]
    path = data.draw(st.sampled_from(sorted(files)))
    content = path.read_bytes()
    damaged = bytearray(content)
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    assert list(index_problems(root)) == [path]
    with pytest.raises(CacheError):
        _read_all(root)
    path.unlink()
    assert list(index_problems(root)) == [path]
    with pytest.raises(CacheError):
        _read_all(root)
    path.write_bytes(content)
    assert index_problems(root) == {}
    _read_all(root)


@pytest.mark.parametrize("name", _INDEX[:-1])
def test_a_damaged_index_is_named(tmp_path, name):
    make_heatmaps(tmp_path)
    chunk = next(path for path in (tmp_path / name / "c").rglob("*") if path.is_file())
    damaged = bytearray(chunk.read_bytes())
    damaged[-6] ^= 1
    chunk.write_bytes(damaged)
    with pytest.raises(CacheError, match=rf"{name}/c/0\S*: the clip index is damaged, it does not match its"):
        open_store(tmp_path)
    chunk.unlink()
    with pytest.raises(
        CacheError, match=rf"{name}/c/0\S*: the clip index is damaged, it is missing; run 'har"
    ):
        open_store(tmp_path)


def test_a_missing_shard_is_never_zeros(tmp_path):
    make_heatmaps(tmp_path)
    store = open_store(tmp_path)
    shard_path(tmp_path, HEATMAPS[0], 1).unlink()
    with pytest.raises(CacheError, match=r"volume/c\.1\.0\.0\.0: the shard is missing"):
        store.array("volume")
    with pytest.raises(CacheError, match=r"volume/c\.1\.0\.0\.0: .* are missing"):
        store.heatmaps("ä")
    with pytest.raises(CacheError, match=r"volume/c\.1\.0\.0\.0: the shard is missing"):
        write_index(tmp_path, ENTRIES)

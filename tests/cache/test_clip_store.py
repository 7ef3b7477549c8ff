"""The clip store: shards equal to zarr-python's, an index that tells the truth, and no half-made store."""

import json
import pickle
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harcache import cache
from harcache.cache.clip_store import (
    ArraySpec,
    IndexEntry,
    ShardWriter,
    create_store,
    index_problems,
    mark_incomplete,
    open_store,
    records_dir,
    shard_path,
    write_index,
)
from harcache.cache.errors import CacheError, StaleStoreError

_SHARD_ROWS = 8
_SPECS = {
    "jpeg": ArraySpec("frames", (20, 24, 3), "uint8", "jpeg", quality=90),
    "zstd": ArraySpec("frames", (20, 24, 3), "uint8", "zstd"),
    "blosc": ArraySpec("volume", (17, 6, 6), "uint8", "blosc"),
    "blosc float16": ArraySpec("keypoints", (2, 17, 3), "float16", "blosc"),
}
_HEATMAPS = [_SPECS["blosc"], _SPECS["blosc float16"]]
_ATTRIBUTES = {"dataset": "demo", "parameters": {"size": 6}, "fingerprint": "abc"}


def _rows(spec: ArraySpec, count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).integers(0, 255, (count, *spec.shape_of_row)).astype(spec.dtype)
    rows[1::3] = 0
    return rows


def _write_shard(root, spec: ArraySpec, part: int, rows: np.ndarray) -> None:
    _write_file(shard_path(root, spec, part), spec, rows)


def _write_file(path, spec: ArraySpec, rows: np.ndarray) -> None:
    with ShardWriter(path, spec, _SHARD_ROWS) as writer:
        for row in rows:
            writer.append(row)


def _entry(id: str, part: int, start: int, length: int) -> IndexEntry:
    return IndexEntry(id, part, start, length, range(10, 10 + length), (-1.5, 2, 30, 40), (240, 320))


_ENTRIES = [_entry("b", 0, 0, 3), _entry("ä", 1, 1, 4), _entry("a", 0, 3, 5)]


def _make_heatmaps(root, entries=_ENTRIES) -> dict[str, np.ndarray]:
    """Write a store of two shards; return each array's rows, shard after shard."""
    create_store(root, _HEATMAPS, _SHARD_ROWS, _ATTRIBUTES)
    pixels = {spec.name: _rows(spec, 2 * _SHARD_ROWS) for spec in _HEATMAPS}
    for spec in _HEATMAPS:
        for part in (0, 1):
            _write_shard(root, spec, part, pixels[spec.name][part * _SHARD_ROWS :][:_SHARD_ROWS])
    write_index(root, entries)
    return pixels


@pytest.mark.parametrize("count", [1, 5, _SHARD_ROWS])
@pytest.mark.parametrize("codec", _SPECS)
def test_a_shard_is_byte_for_byte_what_zarr_python_writes(tmp_path, codec, count):
    spec = _SPECS[codec]
    for name in ("ours", "theirs"):
        create_store(tmp_path / name, [spec], _SHARD_ROWS, {})
    _write_shard(tmp_path / "ours", spec, 0, _rows(spec, count))
    array = zarr.open_array(store=tmp_path / "theirs" / spec.name).with_config({"write_empty_chunks": True})
    array.resize((_SHARD_ROWS, *spec.shape_of_row))
    array[:count] = _rows(spec, count)
    ours, theirs = (shard_path(tmp_path / name, spec, 0).read_bytes() for name in ("ours", "theirs"))
    assert ours == theirs


def test_a_fresh_process_reads_the_pixels_with_zarr_alone_and_without_warnings(tmp_path):
    pixels = _make_heatmaps(tmp_path / "heatmaps.zarr")
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
    pixels = _make_heatmaps(tmp_path)
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
    spec = _SPECS["zstd"]
    create_store(tmp_path, [spec], _SHARD_ROWS, {})
    _write_shard(tmp_path, spec, 0, _rows(spec, 6))
    write_index(tmp_path, [_entry("clip", 0, 2, 4)])
    np.testing.assert_array_equal(cache.open(tmp_path).frames("clip"), _rows(spec, 6)[2:])


def test_an_open_store_travels_to_another_process(tmp_path):
    pixels = _make_heatmaps(tmp_path)
    store = open_store(tmp_path)
    store.heatmaps("a")
    (tmp_path / "store.pickle").write_bytes(pickle.dumps(store))
    program = (
        "import pickle, sys; s = pickle.load(open(sys.argv[1], 'rb')); print(int(s.heatmaps('a').sum()))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "store.pickle")]
    assert int(subprocess.run(command, capture_output=True, check=True).stdout) == pixels["volume"][3:8].sum()


def test_an_unknown_clip_is_named(tmp_path):
    _make_heatmaps(tmp_path)
    with pytest.raises(CacheError, match="no clip 'c' among 3"):
        open_store(tmp_path).rows("c")


def test_an_unknown_array_is_named_with_the_nearest(tmp_path):
    _make_heatmaps(tmp_path)
    with pytest.raises(CacheError, match=r"no array 'volum' of frames\. Did you mean 'volume'"):
        open_store(tmp_path).reader("volum")


def test_a_store_without_clips_can_be_opened(tmp_path):
    create_store(tmp_path, _HEATMAPS, _SHARD_ROWS, {})
    write_index(tmp_path, [])
    assert len(open_store(tmp_path)) == 0


def test_the_same_clips_give_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        _make_heatmaps(tmp_path / name)
    write_index(tmp_path / "second", _ENTRIES)
    files = [path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*")]
    assert len(files) == len(list((tmp_path / "second").rglob("*")))
    for file in files:
        if (tmp_path / "first" / file).is_file():
            assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_a_store_grows_by_parts(tmp_path):
    pixels = _make_heatmaps(tmp_path, _ENTRIES[:1])
    assert open_store(tmp_path).array("volume").shape[0] == _SHARD_ROWS
    create_store(tmp_path, _HEATMAPS, _SHARD_ROWS, _ATTRIBUTES)
    write_index(tmp_path, _ENTRIES)
    np.testing.assert_array_equal(open_store(tmp_path).heatmaps("ä"), pixels["volume"][9:13])


def test_fewer_clips_delete_no_shard(tmp_path):
    _make_heatmaps(tmp_path)
    write_index(tmp_path, _ENTRIES[:1])
    assert shard_path(tmp_path, _HEATMAPS[0], 1).exists()


def test_a_store_is_incomplete_until_its_index_is_written(tmp_path):
    _make_heatmaps(tmp_path)
    create_store(tmp_path, _HEATMAPS, _SHARD_ROWS, _ATTRIBUTES)
    with pytest.raises(CacheError, match="the store is incomplete; run the stage"):
        open_store(tmp_path)


def test_a_crash_while_the_index_is_written_leaves_the_store_incomplete(tmp_path):
    _make_heatmaps(tmp_path)
    shutil.rmtree(tmp_path / "box")
    (tmp_path / "box").write_text("in the way")
    with pytest.raises(Exception, match="box"):
        write_index(tmp_path, _ENTRIES)
    with pytest.raises(CacheError, match="the store is incomplete"):
        open_store(tmp_path)


def test_a_store_half_created_is_finished(tmp_path):
    create_store(tmp_path, _HEATMAPS, _SHARD_ROWS, _ATTRIBUTES)
    shutil.rmtree(tmp_path / "keypoints")
    _make_heatmaps(tmp_path)
    assert len(open_store(tmp_path)) == 3


@pytest.mark.parametrize(
    ("arrays", "shard_rows", "attributes", "message"),
    [
        (_HEATMAPS, 9, _ATTRIBUTES, "made with shard_rows = 8, but 9 is asked for"),
        (_HEATMAPS[:1], _SHARD_ROWS, _ATTRIBUTES, r"made with arrays\.keypoints = .*, but None is asked for"),
        (_HEATMAPS, _SHARD_ROWS, {**_ATTRIBUTES, "dataset": "ntu60"}, "dataset = 'demo', but 'ntu60' is"),
        (
            _HEATMAPS,
            9,
            {**_ATTRIBUTES, "parameters": {"size": 7}},
            r"parameters\.size = 6, but 7 is asked for; with shard_rows = 8, but 9 is asked for; run",
        ),
        (_HEATMAPS, _SHARD_ROWS, {**_ATTRIBUTES, "fingerprint": "x"}, "fingerprint = 'abc', but 'x'"),
        (_HEATMAPS, _SHARD_ROWS, {"dataset": "demo"}, "fingerprint = 'abc', but None"),
    ],
)
def test_a_store_of_other_parameters_is_refused(tmp_path, arrays, shard_rows, attributes, message):
    _make_heatmaps(tmp_path)
    with pytest.raises(StaleStoreError, match=message):
        create_store(tmp_path, arrays, shard_rows, attributes)
    assert len(open_store(tmp_path)) == 3


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
    _make_heatmaps(tmp_path)
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


def test_another_format_version_is_refused(tmp_path):
    _make_heatmaps(tmp_path)
    metadata = json.loads((tmp_path / "zarr.json").read_text())
    metadata["attributes"]["format_version"] = 3
    (tmp_path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(
        CacheError, match=r"found format \('harcache.clips', 3\), expected \('harcache.clips', 2\); delete"
    ):
        open_store(tmp_path)


@pytest.mark.parametrize("text", ['{"attributes"', "[]", "null", '{"attributes": [1]}', "[" * 100_000])
def test_damaged_metadata_are_named(tmp_path, text):
    _make_heatmaps(tmp_path)
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
        _make_heatmaps(root)
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
    _make_heatmaps(tmp_path)
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


def test_damaged_metadata_are_written_anew_with_the_index(tmp_path):
    _make_heatmaps(tmp_path)
    path = tmp_path / "volume" / "zarr.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"clevel": 5', b'"clevel": 7'))
    create_store(tmp_path, _HEATMAPS, _SHARD_ROWS, _ATTRIBUTES)
    write_index(tmp_path, _ENTRIES)
    assert path.read_bytes() == content


@pytest.mark.parametrize("damage", ["none", "changed", "gone"])
def test_a_store_marked_incomplete_is_refused_until_its_index_is_made_anew(tmp_path, damage):
    _make_heatmaps(tmp_path)
    metadata = tmp_path / "zarr.json"
    content = metadata.read_bytes()
    if damage != "none":
        metadata.unlink()
    if damage == "changed":
        metadata.write_bytes(content.replace(b"abc", b"abd"))
    mark_incomplete(tmp_path)
    with pytest.raises(CacheError, match="no store here" if damage != "none" else "the store is incomplete"):
        open_store(tmp_path)
    create_store(tmp_path, _HEATMAPS, _SHARD_ROWS, _ATTRIBUTES)
    write_index(tmp_path, _ENTRIES)
    assert metadata.read_bytes() == content


def test_a_missing_shard_is_never_zeros(tmp_path):
    _make_heatmaps(tmp_path)
    store = open_store(tmp_path)
    shard_path(tmp_path, _HEATMAPS[0], 1).unlink()
    with pytest.raises(CacheError, match=r"volume/c\.1\.0\.0\.0: the shard is missing"):
        store.array("volume")
    with pytest.raises(CacheError, match=r"volume/c\.1\.0\.0\.0: .* are missing"):
        store.heatmaps("ä")
    with pytest.raises(CacheError, match=r"volume/c\.1\.0\.0\.0: the shard is missing"):
        write_index(tmp_path, _ENTRIES)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([_entry("a", 0, 0, 2), _entry("a", 0, 2, 2)], "a clip is listed twice"),
        ([_entry("a", 0, 7, 2)], "clip 'a' has rows 7 to 9 .* a shard has 8"),
        ([_entry("a", 0, 0, 0)], "clip 'a' has rows 0 to 0"),
        ([IndexEntry("a", 0, 0, 2, [1], (0, 0, 1, 1), (1, 1))], "and 1 frame numbers"),
        ([_entry("a", 1, 2, 3), _entry("b", 1, 0, 3)], "clips 'b' and 'a' overlap in part 1"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(tmp_path, entries, message):
    _make_heatmaps(tmp_path)
    with pytest.raises(CacheError, match=message):
        write_index(tmp_path, entries)
    assert len(open_store(tmp_path)) == 3


def test_a_writer_tells_each_row_its_number_and_refuses_one_too_many(tmp_path):
    spec = _SPECS["blosc"]
    with ShardWriter(tmp_path / "shard", spec, 2) as writer:
        assert [writer.append(row) for row in _rows(spec, 2)] == [0, 1]
        with pytest.raises(CacheError, match="all 2 rows are taken"):
            writer.append(_rows(spec, 1)[0])


@pytest.mark.parametrize("row", [np.zeros((17, 6, 7), np.uint8), np.zeros((17, 6, 6), np.float32)])
def test_a_row_of_another_kind_is_refused(tmp_path, row):
    with (
        ShardWriter(tmp_path / "shard", _SPECS["blosc"], 2) as writer,
        pytest.raises(CacheError, match=r"'volume' has uint8 \(17, 6, 6\)"),
    ):
        writer.append(row)


@pytest.mark.parametrize("codec", ["jpeg", "zstd", "blosc"])
def test_rows_taken_back_leave_the_file_as_if_they_had_never_been(tmp_path, codec):
    spec = _SPECS[codec]
    rows = _rows(spec, _SHARD_ROWS)
    other = _rows(spec, _SHARD_ROWS, seed=1)
    _write_file(tmp_path / "plain", spec, rows)
    with ShardWriter(tmp_path / "rewound", spec, _SHARD_ROWS) as writer:
        for row in [*rows[:3], *other[3:]]:
            writer.append(row)
        writer.rewind(3)
        assert writer.rows == 3
        assert [writer.append(row) for row in rows[3:]] == [3, 4, 5, 6, 7]
    assert (tmp_path / "rewound").read_bytes() == (tmp_path / "plain").read_bytes()


def test_a_shorter_file_after_taking_rows_back_has_no_rest_of_them(tmp_path):
    spec = _SPECS["zstd"]
    rows = _rows(spec, 6)
    _write_file(tmp_path / "plain", spec, rows[:2])
    with ShardWriter(tmp_path / "rewound", spec, _SHARD_ROWS) as writer:
        for row in rows:
            writer.append(row)
        writer.rewind(2)
    assert (tmp_path / "rewound").read_bytes() == (tmp_path / "plain").read_bytes()


def test_taking_back_rows_that_were_not_written_changes_nothing(tmp_path):
    spec = _SPECS["blosc"]
    with ShardWriter(tmp_path / "shard", spec, _SHARD_ROWS) as writer:
        writer.rewind(0)
        for row in _rows(spec, 2):
            writer.append(row)
        writer.rewind(2)
        writer.rewind(7)
        assert writer.rows == 2
    _write_file(tmp_path / "plain", spec, _rows(spec, 2))
    assert (tmp_path / "shard").read_bytes() == (tmp_path / "plain").read_bytes()


def test_a_shard_whose_rows_are_all_taken_back_is_no_file(tmp_path):
    spec = _SPECS["blosc"]
    with ShardWriter(tmp_path / "shard", spec, 2) as writer:
        for row in _rows(spec, 2):
            writer.append(row)
        writer.rewind(0)
    assert not (tmp_path / "shard").exists()


def test_an_interrupted_or_empty_writer_leaves_no_file(tmp_path):
    spec = _SPECS["blosc"]
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "shard", spec, 2) as writer:
        writer.append(_rows(spec, 1)[0])
        raise KeyboardInterrupt
    assert not (tmp_path / "shard").exists()
    with ShardWriter(tmp_path / "shard", spec, 2):
        pass
    assert not (tmp_path / "shard").exists()


def test_jpeg_takes_rgb_frames_only():
    with pytest.raises(CacheError, match=r"jpeg needs uint8 \(height, width, 3\)"):
        ArraySpec("volume", (17, 6, 6), "uint8", "jpeg")


def test_an_unknown_codec_is_named_with_the_nearest():
    with pytest.raises(CacheError, match=r"unknown codec 'zst'\. Did you mean 'zstd'"):
        ArraySpec("frames", (8, 8, 3), "uint8", "zst")


def test_creating_and_listing_a_store_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _make_heatmaps(tmp_path)
        (records_dir(tmp_path) / "part-00000.json").write_text("{}")
        zarr.open_group(tmp_path, mode="r").tree()

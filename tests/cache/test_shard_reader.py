"""The shard reader: what zarr-python reads bit for bit, faster, from many threads, and no damage unseen."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ZstdCodec

from harcache.cache import shard_reader
from harcache.cache.array_spec import ArraySpec
from harcache.cache.clip_index import IndexEntry
from harcache.cache.codecs import JpegCodec
from harcache.cache.errors import CacheError
from harcache.cache.shard_reader import ShardReader
from harcache.cache.shard_writer import ShardWriter
from harcache.cache.store_paths import shard_path
from harcache.cache.store_writer import create_store, write_index

_DIRECT = {
    "jpeg": (JpegCodec(90), [Crc32cCodec()]),
    "jpeg without checksum": (JpegCodec(90), []),
    "zstd": (BytesCodec(), [ZstdCodec(level=1), Crc32cCodec()]),
    "blosc": (BytesCodec(), [BloscCodec(cname="lz4", shuffle="noshuffle"), Crc32cCodec()]),
    "blosc shuffled": (BytesCodec(), [BloscCodec(cname="zstd", shuffle="bitshuffle")]),
    "uncompressed": (BytesCodec(), [Crc32cCodec()]),
    "bare": (BytesCodec(), []),
}
_BY_ZARR = {
    "gzip": (BytesCodec(), [GzipCodec(), Crc32cCodec()]),
    "big endian": (BytesCodec(endian="big"), [Crc32cCodec()]),
    "two compressors": (BytesCodec(), [ZstdCodec(), GzipCodec()]),
}
_SPEC = ArraySpec("volume", (3, 5, 4), "uint8", "blosc")


@st.composite
def _cases(draw, codecs):
    codec = draw(st.sampled_from(sorted(codecs)))
    shard_rows, parts = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    row = tuple(draw(st.lists(st.integers(1, 9), min_size=2, max_size=2)))
    row = (*row, 3) if codec.startswith("jpeg") else draw(st.sampled_from([row, (*row, 2), row[:1], ()]))
    numeric = draw(st.sampled_from(["uint8", "float16", "float32", "int64"]))
    dtype = "uint8" if codec.startswith("jpeg") else numeric
    filled = draw(st.integers(1, shard_rows * parts))
    rows = draw(st.lists(st.integers(0, filled - 1), max_size=12))
    separator = draw(st.sampled_from("./"))
    return codecs[codec], shard_rows, parts, row, dtype, filled, rows, separator


def _check_against_zarr(folder, case) -> ShardReader:
    (serializer, compressors), shard_rows, parts, row, dtype, filled, rows, separator = case
    array = zarr.create_array(
        store=folder,
        name="a",
        shape=(shard_rows * parts, *row),
        dtype=dtype,
        chunks=(1, *row),
        shards=(shard_rows, *row),
        serializer=serializer,
        compressors=compressors,
        chunk_key_encoding={"name": "default", "separator": separator},
        config={"write_empty_chunks": True},
    )
    array[:filled] = np.random.default_rng(filled).integers(0, 255, (filled, *row)).astype(dtype)
    reader = ShardReader(folder, "a")
    out = np.empty((len(rows), *reader.row_shape), reader.dtype)
    reader.read_rows(rows, out)
    expected = array[...][rows] if rows else np.empty((0, *row), dtype)
    assert (out.dtype, out.tobytes()) == (expected.dtype, expected.tobytes())
    return reader


@settings(deadline=None, max_examples=120)
@given(_cases(_DIRECT))
def test_every_row_is_bit_for_bit_what_zarr_python_reads(tmp_path_factory, case):
    reader = _check_against_zarr(tmp_path_factory.mktemp("store"), case)
    assert "_zarr_array" not in vars(reader)


@settings(deadline=None, max_examples=20)
@given(_cases(_BY_ZARR))
def test_codecs_that_it_does_not_know_are_left_to_zarr_python(tmp_path_factory, case):
    _check_against_zarr(tmp_path_factory.mktemp("store"), case)


@pytest.mark.parametrize("shards", [None, (4, 4, 4)])
def test_layouts_that_it_does_not_know_are_left_to_zarr_python(tmp_path, shards):
    values = np.arange(8 * 4 * 4, dtype=np.uint8).reshape(8, 4, 4)
    zarr.create_array(store=tmp_path, name="a", data=values, chunks=(2, 4, 2), shards=shards)
    reader, out = ShardReader(tmp_path, "a"), np.empty((3, 4, 4), np.uint8)
    reader.read_rows([5, 0, 5], out)
    np.testing.assert_array_equal(out, values[[5, 0, 5]])


def _make_store(root, shard_rows: int = 8, parts: int = 2) -> np.ndarray:
    """Write a store whose clip "clip-<part>" fills each shard but its last row."""
    create_store(root, [_SPEC], shard_rows, {})
    rows = np.random.default_rng(0).integers(0, 255, (parts, shard_rows, 3, 5, 4), dtype=np.uint8)
    for part in range(parts):
        with ShardWriter(shard_path(root, _SPEC, part), _SPEC, shard_rows) as writer:
            for row in rows[part, :-1]:
                writer.append(row)
    length = shard_rows - 1
    clip = (length, range(length), (0, 0, 1, 1), (1, 1))
    write_index(root, [IndexEntry(f"clip-{part}", part, 0, *clip) for part in range(parts)])
    rows[:, -1] = 0
    return rows.reshape(-1, 3, 5, 4)


def _read(reader: ShardReader, rows) -> np.ndarray:
    out = np.empty((len(rows), *reader.row_shape), reader.dtype)
    reader.read_rows(rows, out)
    return out


def test_rows_are_written_into_the_buffer_that_is_given(tmp_path):
    rows, batch = _make_store(tmp_path), np.full((2, 3, 3, 5, 4), 7, np.uint8)
    ShardReader(tmp_path, "volume").read_rows(np.array([9, 0, 9]), batch[1])
    np.testing.assert_array_equal(batch[1], rows[[9, 0, 9]])
    assert (batch[0] == 7).all()


def test_a_reader_knows_its_rows(tmp_path):
    _make_store(tmp_path)
    reader = ShardReader(tmp_path, "volume")
    assert (reader.rows, reader.row_shape, reader.dtype) == (16, (3, 5, 4), np.uint8)


def test_many_threads_read_the_same_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_reader, "_OPEN_SHARDS", 2)
    expected = _make_store(tmp_path, shard_rows=4, parts=6)
    reader, filled = ShardReader(tmp_path, "volume"), [row for row in range(24) if row % 4 < 3]
    orders = [np.random.default_rng(seed).permutation(filled) for seed in range(64)]
    with ThreadPoolExecutor(8) as threads:
        for order, found in zip(orders, threads.map(lambda rows: _read(reader, rows), orders), strict=True):
            np.testing.assert_array_equal(found, expected[order])


def test_a_pickled_reader_opens_the_files_anew(tmp_path):
    expected, reader = _make_store(tmp_path), ShardReader(tmp_path, "volume")
    _read(reader, [0, 8])
    data = pickle.dumps(reader)
    assert len(data) < 500
    np.testing.assert_array_equal(_read(pickle.loads(data), [8, 0]), expected[[8, 0]])


def test_every_flipped_bit_of_a_shard_is_found(tmp_path):
    expected = _make_store(tmp_path, shard_rows=3, parts=1)
    path = shard_path(tmp_path, _SPEC, 0)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        reader, sound = ShardReader(tmp_path, "volume"), []
        for row in (0, 1):
            try:
                sound.append((row, _read(reader, [row])[0]))
            except CacheError as error:
                assert str(path) in str(error)
        assert len(sound) < 2
        for row, found in sound:
            np.testing.assert_array_equal(found, expected[row])


def test_damage_names_file_row_and_clip(tmp_path):
    _make_store(tmp_path)
    path = shard_path(tmp_path, _SPEC, 1)
    damaged = bytearray(path.read_bytes())
    damaged[30] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CacheError, match=r"volume/c\.1\.0\.0\.0: row 8 \(clip 'clip-1'\) is damaged"):
        _read(ShardReader(tmp_path, "volume"), [8])


@pytest.mark.parametrize("kept", [-1, 50, 0])
def test_a_cut_off_shard_is_found(tmp_path, kept):
    _make_store(tmp_path)
    path = shard_path(tmp_path, _SPEC, 0)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        CacheError, match=r"c\.0\.0\.0\.0: the shard('s index is damaged or cut off| is empty)"
    ):
        _read(ShardReader(tmp_path, "volume"), [0])


def test_a_missing_chunk_is_an_error_and_never_zeros(tmp_path):
    _make_store(tmp_path)
    with pytest.raises(CacheError, match="row 7 is not in this shard"):
        _read(ShardReader(tmp_path, "volume"), [0, 7])


def test_a_missing_shard_is_an_error_and_never_zeros(tmp_path):
    _make_store(tmp_path)
    shard_path(tmp_path, _SPEC, 1).unlink()
    with pytest.raises(CacheError, match=r"c\.1\.0\.0\.0: row 8 \(clip 'clip-1'\) .* there is no such file"):
        _read(ShardReader(tmp_path, "volume"), [0, 9])


@pytest.mark.parametrize("codec", ["blosc", "zstd"])
@pytest.mark.parametrize("width", [3, 5])
def test_a_chunk_of_another_size_is_an_error(tmp_path, codec, width):
    create_store(tmp_path, [replace(_SPEC, codec=codec)], 2, {})
    other = ArraySpec("volume", (3, 5, width), "uint8", codec)
    with ShardWriter(shard_path(tmp_path, _SPEC, 0), other, 2) as writer:
        writer.append(np.zeros((3, 5, width), np.uint8))
    write_index(tmp_path, [IndexEntry("clip", 0, 0, 1, [0], (0, 0, 1, 1), (1, 1))])
    with pytest.raises(CacheError, match=r"row 0 \(clip 'clip'\) cannot be decoded"):
        _read(ShardReader(tmp_path, "volume"), [0])


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, 3, 5, 4), np.uint8),
        np.empty((1, 3, 5, 4), np.float32),
        np.empty((1, 4, 5, 3), np.uint8).transpose(0, 3, 2, 1),
    ],
)
def test_a_buffer_that_does_not_fit_is_refused(tmp_path, out):
    _make_store(tmp_path)
    with pytest.raises(ValueError, match=r"expected contiguous uint8 \(1, 3, 5, 4\)"):
        ShardReader(tmp_path, "volume").read_rows([0], out)


@pytest.mark.parametrize("row", [-1, 16])
def test_a_row_outside_the_array_is_refused(tmp_path, row):
    _make_store(tmp_path)
    with pytest.raises(IndexError, match="asked of volume, which has 16"):
        _read(ShardReader(tmp_path, "volume"), [row])


def test_an_array_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CacheError, match=r"volume/zarr\.json: no such array"):
        ShardReader(tmp_path, "volume")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "damaged"), ("{}", "not a Zarr v3 array"), ('{"node_type": "array"}', "damaged")],
)
def test_damaged_metadata_are_named(tmp_path, text, message):
    _make_store(tmp_path)
    (tmp_path / "volume" / "zarr.json").write_text(text)
    with pytest.raises(CacheError, match=rf"volume/zarr\.json: {message}"):
        ShardReader(tmp_path, "volume")

"""The shard writer: the bytes of zarr-python, and rows that are taken back leave no trace."""

import numpy as np
import pytest
import zarr

from harcache.cache.errors import CacheError
from harcache.cache.shard_writer import ShardWriter
from harcache.cache.store_paths import shard_path
from harcache.cache.store_writer import create_store
from tests.cache.heatmap_stores import SHARD_ROWS, SPECS, make_rows, write_file, write_shard


@pytest.mark.parametrize("count", [1, 5, SHARD_ROWS])
@pytest.mark.parametrize("codec", SPECS)
def test_a_shard_is_byte_for_byte_what_zarr_python_writes(tmp_path, codec, count):
    spec = SPECS[codec]
    for name in ("ours", "theirs"):
        create_store(tmp_path / name, [spec], SHARD_ROWS, {})
    write_shard(tmp_path / "ours", spec, 0, make_rows(spec, count))
    array = zarr.open_array(store=tmp_path / "theirs" / spec.name).with_config({"write_empty_chunks": True})
    array.resize((SHARD_ROWS, *spec.shape_of_row))
    array[:count] = make_rows(spec, count)
    ours, theirs = (shard_path(tmp_path / name, spec, 0).read_bytes() for name in ("ours", "theirs"))
    assert ours == theirs


def test_a_writer_tells_each_row_its_number_and_refuses_one_too_many(tmp_path):
    spec = SPECS["blosc"]
    with ShardWriter(tmp_path / "shard", spec, 2) as writer:
        assert [writer.append(row) for row in make_rows(spec, 2)] == [0, 1]
        with pytest.raises(CacheError, match="all 2 rows are taken"):
            writer.append(make_rows(spec, 1)[0])


@pytest.mark.parametrize("row", [np.zeros((17, 6, 7), np.uint8), np.zeros((17, 6, 6), np.float32)])
def test_a_row_of_another_kind_is_refused(tmp_path, row):
    with (
        ShardWriter(tmp_path / "shard", SPECS["blosc"], 2) as writer,
        pytest.raises(CacheError, match=r"'volume' has uint8 \(17, 6, 6\)"),
    ):
        writer.append(row)


@pytest.mark.parametrize("codec", ["jpeg", "zstd", "blosc"])
def test_rows_taken_back_leave_the_file_as_if_they_had_never_been(tmp_path, codec):
    spec = SPECS[codec]
    rows = make_rows(spec, SHARD_ROWS)
    other = make_rows(spec, SHARD_ROWS, seed=1)
    write_file(tmp_path / "plain", spec, rows)
    with ShardWriter(tmp_path / "rewound", spec, SHARD_ROWS) as writer:
        for row in [*rows[:3], *other[3:]]:
            writer.append(row)
        writer.rewind(3)
        assert writer.rows == 3
        assert [writer.append(row) for row in rows[3:]] == [3, 4, 5, 6, 7]
    assert (tmp_path / "rewound").read_bytes() == (tmp_path / "plain").read_bytes()


def test_a_shorter_file_after_taking_rows_back_has_no_rest_of_them(tmp_path):
    spec = SPECS["zstd"]
    rows = make_rows(spec, 6)
    write_file(tmp_path / "plain", spec, rows[:2])
    with ShardWriter(tmp_path / "rewound", spec, SHARD_ROWS) as writer:
        for row in rows:
            writer.append(row)
        writer.rewind(2)
    assert (tmp_path / "rewound").read_bytes() == (tmp_path / "plain").read_bytes()


def test_taking_back_rows_that_were_not_written_changes_nothing(tmp_path):
    spec = SPECS["blosc"]
    with ShardWriter(tmp_path / "shard", spec, SHARD_ROWS) as writer:
        writer.rewind(0)
        for row in make_rows(spec, 2):
            writer.append(row)
        writer.rewind(2)
        writer.rewind(7)
        assert writer.rows == 2
    write_file(tmp_path / "plain", spec, make_rows(spec, 2))
    assert (tmp_path / "shard").read_bytes() == (tmp_path / "plain").read_bytes()


def test_a_shard_whose_rows_are_all_taken_back_is_no_file(tmp_path):
    spec = SPECS["blosc"]
    with ShardWriter(tmp_path / "shard", spec, 2) as writer:
        for row in make_rows(spec, 2):
            writer.append(row)
        writer.rewind(0)
    assert not (tmp_path / "shard").exists()


def test_an_interrupted_or_empty_writer_leaves_no_file(tmp_path):
    spec = SPECS["blosc"]
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "shard", spec, 2) as writer:
        writer.append(make_rows(spec, 1)[0])
        raise KeyboardInterrupt
    assert not (tmp_path / "shard").exists()
    with ShardWriter(tmp_path / "shard", spec, 2):
        pass
    assert not (tmp_path / "shard").exists()

"""A small array that is read without zarr-python is the one that zarr-python reads."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec, GzipCodec, ZstdCodec

from harcache.cache.errors import CacheError
from harcache.cache.whole_array import read_whole_array
from harcache.cache.zarr_writing import write_index_array
from tests.projects import ROOT

_NUMBERS = ("int32", "int64", "float32", "uint8", "float16")


@pytest.mark.parametrize("dtype", _NUMBERS)
@pytest.mark.parametrize("shape", [(7,), (5, 4), (1,), (0,), (0, 4)])
def test_numbers_are_those_that_zarr_reads(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    write_index_array(tmp_path, "some", values)
    found = read_whole_array(tmp_path / "some")
    expected = np.asarray(zarr.open_array(store=tmp_path / "some", mode="r")[...])
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, values)


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_texts_are_those_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    write_index_array(folder, "clip_id", np.array(texts, object))
    assert [str(text) for text in read_whole_array(folder / "clip_id")] == texts


@pytest.mark.parametrize(
    "form",
    [
        {"chunks": (3,)},
        {"compressors": [GzipCodec(), Crc32cCodec()]},
        {"compressors": None},
        {"serializer": BytesCodec(endian="big"), "compressors": [ZstdCodec(), Crc32cCodec()]},
    ],
    ids=["chunks", "gzip", "raw", "big"],
)
def test_an_array_of_another_form_is_read_by_zarr(tmp_path: Path, form: dict[str, Any]) -> None:
    values = np.arange(8, dtype=np.int32)
    zarr.create_array(store=tmp_path, name="some", **{"data": values, "chunks": (8,)} | form)
    np.testing.assert_array_equal(read_whole_array(tmp_path / "some"), values)


def _written(folder: Path) -> Path:
    write_index_array(folder, "some", np.arange(8, dtype=np.int32))
    return folder / "some"


def test_a_changed_byte_is_an_error(tmp_path: Path) -> None:
    array = _written(tmp_path)
    content = bytearray((array / "c" / "0").read_bytes())
    content[5] ^= 1
    (array / "c" / "0").write_bytes(content)
    with pytest.raises(ValueError, match="its checksum does not match"):
        read_whole_array(array)


def test_a_chunk_or_metadata_that_are_missing_are_errors(tmp_path: Path) -> None:
    array = _written(tmp_path)
    (array / "c" / "0").unlink()
    with pytest.raises(FileNotFoundError):
        read_whole_array(array)
    (array / "zarr.json").unlink()
    with pytest.raises(CacheError, match="no such array"):
        read_whole_array(array)


def test_fewer_values_than_the_metadata_say_are_an_error(tmp_path: Path) -> None:
    array = _written(tmp_path)
    metadata = json.loads((array / "zarr.json").read_text())
    metadata["shape"] = metadata["chunk_grid"]["configuration"]["chunk_shape"] = [9]
    (array / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="it holds 32 bytes, expected 36"):
        read_whole_array(array)


def test_reading_a_store_loads_neither_zarr_nor_pytorch(own_demo) -> None:  # type: ignore[no-untyped-def]
    script = f"""
import sys
from harcache import cache
rgb, heatmaps = cache.open({str(own_demo.rgb)!r}), cache.open({str(own_demo.heatmaps)!r})
clip = rgb.ids[0]
assert rgb.frames(clip).any() and heatmaps.heatmaps(clip).any() and len(rgb.frame_numbers(clip))
print(sorted({{"zarr", "torch", "h5py", "cv2"}} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"

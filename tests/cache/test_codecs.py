"""The JPEG codec: small loss, the same bytes every time, found by plain Zarr, strict about its input."""

import json
import subprocess
import sys

import numpy as np
import pytest
import zarr

from harcache.cache.codecs import JpegCodec
from harcache.cache.errors import CacheError
from harcache.cache.jpeg import decode_jpeg, encode_jpeg


def _frame(height: int = 24, width: int = 40, shift: int = 0) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 6 + shift, y * 10, (x + y) * 3], axis=-1).astype(np.uint8)


def _write_jpeg_array(path, frames: np.ndarray, quality: int = 95) -> None:
    array = zarr.create_array(
        store=path,
        shape=frames.shape,
        dtype="uint8",
        chunks=(1, *frames.shape[1:]),
        shards=frames.shape,
        serializer=JpegCodec(quality),
        compressors=None,
    )
    array[...] = frames


def test_a_frame_comes_back_nearly_as_it_was():
    frame, out = _frame(), np.empty((24, 40, 3), np.uint8)
    decode_jpeg(encode_jpeg(frame, 95), out)
    assert np.abs(out.astype(int) - frame).mean() < 2


def test_colour_is_kept_at_full_resolution():
    frame = np.zeros((8, 8, 3), np.uint8)
    frame[:, ::2, 0] = 255
    out = np.empty_like(frame)
    decode_jpeg(encode_jpeg(frame, 100), out)
    assert np.abs(out.astype(int) - frame).max() < 16


def test_the_same_pixels_give_the_same_bytes_whatever_their_memory_layout():
    frame = _frame()
    assert encode_jpeg(frame, 90) == encode_jpeg(np.asfortranarray(frame), 90)


def test_a_frame_of_another_size_is_refused():
    out = np.empty((32, 40, 3), np.uint8)
    with pytest.raises(ValueError, match=r"frame of \(24, 40, 3\), expected \(32, 40, 3\)"):
        decode_jpeg(encode_jpeg(_frame(), 95), out)


def test_damaged_bytes_are_refused():
    with pytest.raises(ValueError):
        decode_jpeg(encode_jpeg(_frame(), 95)[:200], np.empty((24, 40, 3), np.uint8))


def test_a_process_that_imports_nothing_of_the_project_reads_the_right_pixels(tmp_path):
    frames = np.stack([_frame(shift=9 * i) for i in range(3)])
    _write_jpeg_array(tmp_path / "frames.zarr", frames)
    program = "import sys, zarr; sys.stdout.buffer.write(zarr.open(sys.argv[1])[...].tobytes())"
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path / "frames.zarr")]
    read = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    expected = np.empty_like(frames)
    for frame, out in zip(frames, expected, strict=True):
        decode_jpeg(encode_jpeg(frame, 95), out)
    assert read == expected.tobytes()


def test_the_quality_is_kept_in_the_metadata(tmp_path):
    _write_jpeg_array(tmp_path / "a.zarr", np.zeros((2, 8, 8, 3), np.uint8), quality=80)
    sharding = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["codecs"][0]["configuration"]
    assert sharding["codecs"] == [{"name": "harcache.jpeg", "configuration": {"quality": 80}}]
    assert JpegCodec.from_dict(sharding["codecs"][0]) == JpegCodec(80)


@pytest.mark.parametrize("quality", [0, 101, 95.0, "95", True])
def test_an_impossible_quality_is_refused(quality):
    with pytest.raises(CacheError, match="expected a whole number from 1 to 100"):
        JpegCodec(quality)


@pytest.mark.parametrize("configuration", [{}, {"quality": 95, "subsampling": "420"}])
def test_metadata_of_another_version_are_refused(configuration):
    with pytest.raises(CacheError, match="open the store with the version of harcache"):
        JpegCodec.from_dict({"name": "harcache.jpeg", "configuration": configuration})


@pytest.mark.parametrize(
    ("chunk", "dtype"), [((2, 8, 8, 3), "uint8"), ((1, 8, 8, 4), "uint8"), ((1, 8, 8, 3), "float32")]
)
def test_chunks_that_are_not_single_frames_are_refused(tmp_path, chunk, dtype):
    with pytest.raises(CacheError, match=r"expected uint8 \(1, height, width, 3\)"):
        zarr.create_array(
            store=tmp_path, shape=chunk, chunks=chunk, dtype=dtype, serializer=JpegCodec(), compressors=None
        )

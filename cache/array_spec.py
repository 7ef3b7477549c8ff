"""What an array of a store is: its rows and their codec, as Zarr metadata and as an encoder of rows.

Both name the same codec, so that rows which are encoded here are read by zarr-python.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr
from numcodecs import Blosc, Zstd
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from harcache.cache.codecs import JpegCodec, encode_jpeg
from harcache.cache.errors import CacheError
from harcache.pipeline.base.errors import did_you_mean

__all__ = ["ArraySpec", "array_metadata", "records_metadata", "row_encoder"]

_ZSTD_LEVEL = 1
_BLOSC_LEVEL = 5


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a store: its name, the shape and dtype of a row, and how each row is coded.

    ``codec``: "jpeg" for ``(H, W, 3) uint8`` RGB at ``quality`` (1 to 100), "zstd" for any pixels without
    loss, "blosc" (lz4, no shuffle) for sparse rows that must decode in microseconds.
    """

    name: str
    shape_of_row: tuple[int, ...]
    dtype: str
    codec: Literal["jpeg", "zstd", "blosc"]
    quality: int = 95

    def __post_init__(self) -> None:
        if self.codec not in ("jpeg", "zstd", "blosc"):
            known = did_you_mean(self.codec, ("jpeg", "zstd", "blosc"))
            raise CacheError(f"array '{self.name}': unknown codec '{self.codec}'. {known}")
        if self.codec == "jpeg" and (self.dtype != "uint8" or self.shape_of_row[2:] != (3,)):
            raise CacheError(
                f"array '{self.name}': rows are {self.dtype} {self.shape_of_row}, but jpeg needs"
                " uint8 (height, width, 3); choose zstd or blosc."
            )


def array_metadata(spec: ArraySpec, shard_rows: int, rows: int) -> bytes:
    """Return the zarr.json of an array of ``rows`` rows in shards of ``shard_rows``."""
    serializer, compressors = _zarr_codecs(spec)
    return _metadata(
        shape=(rows, *spec.shape_of_row),
        dtype=spec.dtype,
        chunks=(1, *spec.shape_of_row),
        shards=(shard_rows, *spec.shape_of_row),
        serializer=serializer,
        compressors=[*compressors, Crc32cCodec()],
        fill_value=0,
        # One folder an array: shards are renamed into place, which is safest within a folder.
        chunk_key_encoding={"name": "default", "separator": "."},
    )


def records_metadata() -> bytes:
    """Return the zarr.json of the array that stands for the folder of records."""
    about = "The records of the store's parts lie beside this file; the array itself is empty."
    return _metadata(shape=(0,), dtype="uint8", attributes={"about": about})


def row_encoder(spec: ArraySpec) -> Callable[[np.ndarray], bytes]:
    """Return what makes a row, C-contiguous, into the bytes of its chunk."""
    if spec.codec == "jpeg":
        return lambda row: encode_jpeg(row, spec.quality)
    if spec.codec == "zstd":
        return Zstd(level=_ZSTD_LEVEL).encode
    typesize = np.dtype(spec.dtype).itemsize
    return Blosc("lz4", clevel=_BLOSC_LEVEL, shuffle=Blosc.NOSHUFFLE, typesize=typesize).encode


def _zarr_codecs(spec: ArraySpec) -> tuple[Any, list[Any]]:
    """Return the serializer and the compressor that make the bytes that ``_encoder`` makes."""
    if spec.codec == "jpeg":
        return JpegCodec(spec.quality), []
    if spec.codec == "zstd":
        return BytesCodec(), [ZstdCodec(level=_ZSTD_LEVEL)]
    typesize = np.dtype(spec.dtype).itemsize
    return BytesCodec(), [
        BloscCodec(cname="lz4", clevel=_BLOSC_LEVEL, shuffle="noshuffle", typesize=typesize)
    ]


def _metadata(**array: Any) -> bytes:
    """Return the zarr.json that zarr-python writes for an array."""
    written: dict[str, Any] = {}
    zarr.create_array(store=written, **array)
    return written["zarr.json"].to_bytes()

"""Which arrays can be read without zarr-python: those in the layout that this project writes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import blosc, zstd

from harcache.cache.errors import CacheError
from harcache.cache.jpeg import JPEG_NAME, decode_jpeg

__all__ = ["NUMBERS", "ShardLayout", "decompress_zstd", "read_array_metadata", "shard_layout"]

NUMBERS = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)} | {
    "float16",
    "float32",
    "float64",
}

_Decode = Callable[[np.ndarray, np.ndarray], None]
"""Decodes the bytes of a chunk, (n,) uint8, into an array of one row."""


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """How an array lies on disk: shards of ``shard_rows`` chunks of one row each, the index at the end."""

    shard_rows: int
    dtype: np.dtype
    decode: _Decode
    has_checksum: bool
    separator: str
    row_dimensions: int

    def key(self, part: int) -> str:
        """Return the name of a shard's file, below the folder of its array."""
        return self.separator.join(["c", str(part), *["0"] * self.row_dimensions])


def read_array_metadata(folder: Path) -> dict[str, Any]:
    """Read an array's zarr.json; raise ``CacheError`` where it is missing, damaged or of no array."""
    # Read without zarr-python, whose event loop does not survive a fork.
    path = folder / "zarr.json"
    try:
        metadata = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CacheError(
            f"{path}: no such array; give the folder of a store and one of its arrays."
        ) from None
    except ValueError as error:
        raise CacheError(
            f"{path}: damaged ({error}); delete the store and run the pipeline again."
        ) from error
    if not isinstance(metadata, dict) or metadata.get("node_type") != "array":
        raise CacheError(f"{path}: not a Zarr v3 array; give the folder of a store and one of its arrays.")
    return metadata


def shard_layout(metadata: dict[str, Any]) -> ShardLayout | None:
    """Return how to read an array directly, or None where only zarr-python knows."""
    match metadata:
        case {
            "shape": [_, *row_shape],
            "data_type": str(data_type),
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [int(shard_rows), *shard_row]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        } if (
            shard_rows > 0
            and row_shape == shard_row
            and data_type in NUMBERS
            and not metadata.get("storage_transformers")
        ):
            dtype = np.dtype(data_type).newbyteorder("<")
        case _:
            return None
    match sharding:
        case {
            "chunk_shape": [1, *chunk_row],
            "codecs": [*codecs],
            "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "index_location": "end",
        } if chunk_row == row_shape:
            has_checksum = codecs[-1]["name"] == "crc32c"
            decode = _decoder(codecs[:-1] if has_checksum else codecs)
        case _:
            return None
    return decode and ShardLayout(shard_rows, dtype, decode, has_checksum, separator, len(row_shape))


def _decoder(codecs: list[dict[str, Any]]) -> _Decode | None:
    if codecs[0].get("configuration", {}).get("endian", "little") != "little":
        return None
    match [codec["name"] for codec in codecs]:
        case [name] if name == JPEG_NAME:
            return _decode_jpeg
        case ["bytes"]:
            return _copy
        case ["bytes", "blosc"]:
            return _decompress_blosc
        case ["bytes", "zstd"]:
            return decompress_zstd
    return None


def _decode_jpeg(data: np.ndarray, out: np.ndarray) -> None:
    decode_jpeg(data, out[0])


def _decompress_blosc(data: np.ndarray, out: np.ndarray) -> None:
    # The decoder would leave the rest of ``out`` as it is where the chunk is shorter.
    _require_size(int.from_bytes(data[4:8].tobytes(), "little"), out)
    blosc.decompress(data, out)


def decompress_zstd(data: np.ndarray, out: np.ndarray) -> None:
    """Decompress (n,) uint8 into ``out``; raise ``ValueError`` or ``RuntimeError`` unless it fills it."""
    content = np.frombuffer(zstd.decompress(data), np.uint8)
    _require_size(content.nbytes, out)
    _copy(content, out)


def _require_size(size: int, out: np.ndarray) -> None:
    if size != out.nbytes:
        raise ValueError(f"it holds {size} bytes, expected {out.nbytes}")


def _copy(data: np.ndarray, out: np.ndarray) -> None:
    out[...] = data.view(out.dtype).reshape(out.shape)

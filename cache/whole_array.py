"""A small Zarr array read whole, in the form that the index of a store has: one chunk, zstd and a checksum.

zarr-python reads any other form, with equal results, but takes half a second to import, and its event loop
does not survive a fork.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import zstd
from numcodecs.vlen import VLenUTF8

from harcache.cache.shard_file import without_checksum
from harcache.cache.shard_layout import NUMBERS, decompress_zstd, read_array_metadata

__all__ = ["read_whole_array"]


def read_whole_array(folder: Path) -> np.ndarray:
    """Return all values of the array in ``folder``; text as Python strings.

    Raises ``CacheError`` for metadata that are missing or damaged, ``OSError`` for a chunk that is not there,
    and ``ValueError`` or ``RuntimeError`` for one that is damaged.
    """
    metadata = read_array_metadata(folder)
    key = _only_chunk(metadata)
    if key is None:
        import zarr

        return np.asarray(zarr.open_array(store=folder, mode="r")[...])
    shape = tuple(metadata["shape"])
    if math.prod(shape) == 0:
        return np.empty(shape, _dtype(metadata))
    chunk = without_checksum(np.frombuffer((folder / key).read_bytes(), np.uint8))
    return _text(chunk, shape) if metadata["data_type"] == "string" else _numbers(chunk, metadata)


def _only_chunk(metadata: dict[str, Any]) -> str | None:
    """Return the key of the array's one chunk, or None where only zarr-python knows how to read it."""
    match metadata:
        case {
            "shape": [*shape],
            "data_type": str(data_type),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": str(separator)}},
            "codecs": [serializer, {"name": "zstd"}, {"name": "crc32c"}],
        } if chunk_shape == [max(size, 1) for size in shape] and not metadata.get("storage_transformers"):
            plain = _is_text(serializer) if data_type == "string" else _is_little_endian(serializer)
            known = data_type == "string" or data_type in NUMBERS
            return separator.join(["c", *["0"] * len(shape)]) if plain and known else None
    return None


def _is_text(serializer: Any) -> bool:
    return isinstance(serializer, dict) and serializer.get("name") == "vlen-utf8"


def _is_little_endian(serializer: Any) -> bool:
    match serializer:
        case {"name": "bytes", "configuration": {"endian": "little"}}:
            return True
    return False


def _dtype(metadata: dict[str, Any]) -> np.dtype:
    kind = metadata["data_type"]
    return np.dtype(object) if kind == "string" else np.dtype(kind).newbyteorder("<")


def _numbers(chunk: np.ndarray, metadata: dict[str, Any]) -> np.ndarray:
    out = np.empty(tuple(metadata["shape"]), _dtype(metadata))
    decompress_zstd(chunk, out)
    return out


def _text(chunk: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return VLenUTF8().decode(zstd.decompress(chunk)).reshape(shape)

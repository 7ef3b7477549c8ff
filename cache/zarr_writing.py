"""What zarr-python writes of a store: the metadata of arrays, and the small arrays of the index.

Apart, since reading a store does without zarr-python: it takes as long to import as NumPy twice.
"""

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from harcache.cache.array_spec import BLOSC_LEVEL, ZSTD_LEVEL, ArraySpec
from harcache.cache.codecs import JpegCodec
from harcache.pipeline.base.files import flush

__all__ = ["array_metadata", "records_metadata", "write_index_array"]


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


def write_index_array(root: Path, name: str, values: np.ndarray) -> None:
    """Write one array of the index, whatever is there, and flush it to disk."""
    array = zarr.create_array(
        store=root,
        name=name,
        shape=values.shape,
        dtype=str if values.dtype == object else values.dtype,
        chunks=tuple(max(size, 1) for size in values.shape),
        compressors=[ZstdCodec(), Crc32cCodec()],
        # Every chunk is written, so that one that is not there is known to be lost.
        config={"write_empty_chunks": True},
        overwrite=True,
    )
    array[...] = values
    _flush_tree(root / name)


def _zarr_codecs(spec: ArraySpec) -> tuple[Any, list[Any]]:
    """Return the serializer and the compressor that make the bytes that ``row_encoder`` makes."""
    if spec.codec == "jpeg":
        return JpegCodec(spec.quality), []
    if spec.codec == "zstd":
        return BytesCodec(), [ZstdCodec(level=ZSTD_LEVEL)]
    typesize = np.dtype(spec.dtype).itemsize
    return BytesCodec(), [BloscCodec(cname="lz4", clevel=BLOSC_LEVEL, shuffle="noshuffle", typesize=typesize)]


def _metadata(**array: Any) -> bytes:
    """Return the zarr.json that zarr-python writes for an array."""
    written: dict[str, Any] = {}
    zarr.create_array(store=written, **array)
    return written["zarr.json"].to_bytes()


def _flush_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder, folder.parent]:
        flush(path)

"""Single rows out of Zarr shards at the speed of their decoder, where zarr-python needs 150 ms a sample.

A shard is mapped, its index read once, and a chunk decoded straight into the caller's buffer. Only the
layouts that this project writes are read so; any other array is read by zarr-python, with equal results.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc, zstd

from harcache.cache.codecs import JPEG_NAME, decode_jpeg
from harcache.cache.errors import CacheError

__all__ = ["CHECKSUM_BYTES", "MISSING_CHUNK", "ShardReader", "checksum"]

MISSING_CHUNK = 2**64 - 1
"""Offset and length of a chunk that a shard does not hold."""

CHECKSUM_BYTES = 4

# Each mapping holds a file descriptor, of which a process often has 1024; the indexes of all shards stay.
_OPEN_SHARDS = 200
_REMEDY = "delete this file and run the pipeline again"
_NUMBERS = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)} | {
    "float16",
    "float32",
    "float64",
}

_Decode = Callable[[np.ndarray, np.ndarray], None]
"""Decodes the bytes of a chunk, (n,) uint8, into an array of one row."""


def checksum(data: bytes | np.ndarray) -> bytes:
    """Return the CRC-32C of ``data`` as Zarr stores it: 4 bytes, little endian."""
    return google_crc32c.value(data).to_bytes(CHECKSUM_BYTES, "little")


class ShardReader:
    """Reads rows of one array of a store; safe to use from several threads and to send to processes.

    ``store`` is the folder of a Zarr group, ``array`` a name in it. It pickles as these two: each process
    opens the files for itself. Attributes: ``rows`` (along axis 0), ``row_shape`` and ``dtype`` of a row.
    Raises ``CacheError`` when the array's metadata are missing or damaged.
    """

    def __init__(self, store: str | Path, array: str) -> None:
        self._store, self._name = Path(store), array
        metadata = _read_metadata(self._store / array)
        try:
            layout = _shard_layout(metadata)
            self.rows: int = metadata["shape"][0]
            self.row_shape: tuple[int, ...] = tuple(metadata["shape"][1:])
        except (LookupError, TypeError, AttributeError) as error:
            path = self._store / array / "zarr.json"
            raise CacheError(
                f"{path}: damaged ({error!r}); delete the store and run the pipeline again."
            ) from error
        self._shards = _Shards(self._store, array, layout) if layout else None
        self.dtype: np.dtype = layout.dtype if layout else self._zarr_array.dtype

    def __reduce__(self) -> tuple[type["ShardReader"], tuple[Path, str]]:
        return ShardReader, (self._store, self._name)

    def read_rows(self, rows: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        """Decode row ``rows[i]`` into ``out[i]``, in any order and with repetitions.

        ``out``: ``(len(rows), *row_shape)`` of the array's dtype, C-contiguous; its content is undefined
        after an error. Raises ``CacheError``, with file and clip, for a row that is missing or damaged, and
        ``ValueError`` or ``IndexError`` for an ``out`` or rows that do not fit the array.
        """
        numbers = np.asarray(rows, np.int64)
        self._check_request(numbers, out)
        if self._shards is None:
            out[...] = self._zarr_array.oindex[numbers]
            return
        for target, row in enumerate(numbers.tolist()):
            self._shards.read_row(row, out[target : target + 1])

    def _check_request(self, rows: np.ndarray, out: np.ndarray) -> None:
        expected = (len(rows), *self.row_shape)
        if out.shape != expected or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}; expected contiguous {self.dtype} {expected}")
        if rows.size and not 0 <= rows.min() <= rows.max() < self.rows:
            raise IndexError(
                f"rows {rows.min()} to {rows.max()} asked of {self._name}, which has {self.rows}"
            )

    @cached_property
    def _zarr_array(self) -> Any:
        return zarr.open_array(store=self._store / self._name, mode="r")


@dataclass(frozen=True, slots=True)
class _Layout:
    """How an array lies on disk: shards of ``shard_rows`` chunks of one row each, the index at the end."""

    shard_rows: int
    dtype: np.dtype
    decode: _Decode
    has_checksum: bool
    separator: str
    row_dimensions: int

    def key(self, part: int) -> str:
        return self.separator.join(["c", str(part), *["0"] * self.row_dimensions])


class _Shards:
    """The shards of one array, mapped when first read."""

    def __init__(self, store: Path, array: str, layout: _Layout) -> None:
        self._store, self._folder, self._layout = store, store / array, layout
        # Two threads that miss at once both read the shard; they find the same, so no lock is needed.
        self._map = lru_cache(_OPEN_SHARDS)(self._map_shard)
        self._indexes: dict[int, np.ndarray] = {}

    def read_row(self, row: int, out: np.ndarray) -> None:
        part, place = divmod(row, self._layout.shard_rows)
        shard = self._map(part)
        start, length = self._index(part, shard)[place].tolist()
        if start == MISSING_CHUNK:
            raise self._error(row, "is not in this shard")
        end = start + length
        if self._layout.has_checksum:
            end -= CHECKSUM_BYTES
            if checksum(shard[start:end]) != shard[end : end + CHECKSUM_BYTES].tobytes():
                raise self._error(row, "is damaged, its checksum does not match")
        try:
            self._layout.decode(shard[start:end], out)
        except (ValueError, RuntimeError) as error:
            raise self._error(row, f"cannot be decoded ({error})") from error

    def _map_shard(self, part: int) -> np.ndarray:
        path = self._folder / self._layout.key(part)
        try:
            return np.asarray(np.memmap(path, np.uint8, mode="r"))
        except FileNotFoundError:
            row = part * self._layout.shard_rows
            raise self._error(row, "and those after it are missing: there is no such file") from None
        except ValueError:
            raise CacheError(f"{path}: the shard is empty; {_REMEDY}.") from None

    def _index(self, part: int, shard: np.ndarray) -> np.ndarray:
        """Return ``(shard_rows, 2) uint64``: offset and length of each row's chunk."""
        index = self._indexes.get(part)
        if index is None:
            end = len(shard) - CHECKSUM_BYTES
            start = end - 16 * self._layout.shard_rows
            if start < 0 or checksum(shard[start:end]) != shard[end:].tobytes():
                path = self._folder / self._layout.key(part)
                raise CacheError(f"{path}: the shard's index is damaged or cut off; {_REMEDY}.")
            # A copy, since a view would keep the mapping open for ever.
            index = np.frombuffer(shard[start:end].tobytes(), "<u8").reshape(-1, 2)
            self._indexes[part] = index
        return index

    def _error(self, row: int, problem: str) -> CacheError:
        path = self._folder / self._layout.key(row // self._layout.shard_rows)
        return CacheError(f"{path}: row {row}{_clip_of(self._store, row)} {problem}; {_REMEDY}.")


def _clip_of(store: Path, row: int) -> str:
    """Name the clip of a row, for a message."""
    names = ("start", "length", "clip_id")
    try:
        starts, lengths, ids = (
            np.asarray(zarr.open_array(store=store / name, mode="r")[...]) for name in names
        )
        clips = np.flatnonzero((starts <= row) & (row < starts + lengths))
    except (OSError, ValueError):
        # No index, or one in mid-write: the error that asks for the name matters more.
        return ""
    return f" (clip '{ids[clips[0]]}')" if len(clips) else ""


def _read_metadata(folder: Path) -> dict[str, Any]:
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


def _shard_layout(metadata: dict[str, Any]) -> _Layout | None:
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
            and data_type in _NUMBERS
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
    return decode and _Layout(shard_rows, dtype, decode, has_checksum, separator, len(row_shape))


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
            return _decompress_zstd
    return None


def _decode_jpeg(data: np.ndarray, out: np.ndarray) -> None:
    decode_jpeg(data, out[0])


def _decompress_blosc(data: np.ndarray, out: np.ndarray) -> None:
    # The decoder would leave the rest of ``out`` as it is where the chunk is shorter.
    _require_size(int.from_bytes(data[4:8].tobytes(), "little"), out)
    blosc.decompress(data, out)


def _decompress_zstd(data: np.ndarray, out: np.ndarray) -> None:
    content = np.frombuffer(zstd.decompress(data), np.uint8)
    _require_size(content.nbytes, out)
    _copy(content, out)


def _require_size(size: int, out: np.ndarray) -> None:
    if size != out.nbytes:
        raise ValueError(f"it holds {size} bytes, expected {out.nbytes}")


def _copy(data: np.ndarray, out: np.ndarray) -> None:
    out[...] = data.view(out.dtype).reshape(out.shape)

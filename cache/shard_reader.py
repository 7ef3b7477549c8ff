"""Single rows out of Zarr shards at the speed of their decoder, where zarr-python needs 150 ms a sample.

A shard is mapped, its index read once, and a chunk decoded straight into the caller's buffer. Only the
layouts that this project writes are read so; any other array is read by zarr-python, with equal results.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from harcache.cache.errors import CacheError
from harcache.cache.shard_file import MISSING_CHUNK, parse_index, without_checksum
from harcache.cache.shard_layout import ShardLayout, read_array_metadata, shard_layout
from harcache.cache.whole_array import read_whole_array

__all__ = ["ShardReader"]

# Each mapping holds a file descriptor, of which a process often has 1024; the indexes of all shards stay.
_OPEN_SHARDS = 200
_REMEDY = "delete this file and run the pipeline again"


class ShardReader:
    """Reads rows of one array of a store; safe to use from several threads and to send to processes.

    ``store`` is the folder of a Zarr group, ``array`` a name in it. It pickles as these two: each process
    opens the files for itself. Attributes: ``rows`` (along axis 0), ``row_shape`` and ``dtype`` of a row.
    Raises ``CacheError`` when the array's metadata are missing or damaged.
    """

    def __init__(self, store: str | Path, array: str) -> None:
        self._store, self._name = Path(store), array
        metadata = read_array_metadata(self._store / array)
        try:
            layout = shard_layout(metadata)
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
        import zarr

        return zarr.open_array(store=self._store / self._name, mode="r")


class _Shards:
    """The shards of one array, mapped when first read."""

    def __init__(self, store: Path, array: str, layout: ShardLayout) -> None:
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
        chunk = shard[start : start + length]
        if self._layout.has_checksum:
            try:
                chunk = without_checksum(chunk)
            except ValueError:
                raise self._error(row, "is damaged, its checksum does not match") from None
        try:
            self._layout.decode(chunk, out)
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
            try:
                index = parse_index(shard, self._layout.shard_rows)
            except ValueError:
                path = self._folder / self._layout.key(part)
                raise CacheError(f"{path}: the shard's index is damaged or cut off; {_REMEDY}.") from None
            self._indexes[part] = index
        return index

    def _error(self, row: int, problem: str) -> CacheError:
        path = self._folder / self._layout.key(row // self._layout.shard_rows)
        return CacheError(f"{path}: row {row}{_clip_of(self._store, row)} {problem}; {_REMEDY}.")


def _clip_of(store: Path, row: int) -> str:
    """Name the clip of a row, for a message."""
    names = ("start", "length", "clip_id")
    try:
        starts, lengths, ids = (read_whole_array(store / name) for name in names)
        clips = np.flatnonzero((starts <= row) & (row < starts + lengths))
    except (CacheError, OSError, ValueError, RuntimeError):
        # No index, or one in mid-write: the error that asks for the name matters more.
        return ""
    return f" (clip '{ids[clips[0]]}')" if len(clips) else ""

"""Writes shards row by row, with the bytes of zarr-python, which would hold a whole shard in memory."""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from harcache.cache.array_spec import ArraySpec, row_encoder
from harcache.cache.errors import CacheError
from harcache.cache.shard_file import CHECKSUM_BYTES, MISSING_CHUNK, checksum, empty_index, encoded_index

__all__ = ["ShardWriter"]


class ShardWriter:
    """Writes one shard of at most ``shard_rows`` rows; `shard_file` draws it. Memory is one row.

    As a context manager it closes the file, or removes it when the block raises. A shard without rows is
    no file, as in Zarr.
    """

    def __init__(self, path: str | Path, spec: ArraySpec, shard_rows: int) -> None:
        self._path, self._spec = Path(path), spec
        self._dtype = np.dtype(spec.dtype).newbyteorder("<")
        self._encode = row_encoder(spec)
        self._index = empty_index(shard_rows)
        self._offset = 0
        self.rows = 0
        self._file = self._path.open("wb")

    def append(self, row: np.ndarray) -> int:
        """Write one row of the spec's shape and dtype; return its number within the shard.

        Raises ``CacheError`` for another shape or dtype and when the shard is full.
        """
        if row.shape != self._spec.shape_of_row or row.dtype != self._dtype:
            raise CacheError(
                f"{self._path}: got a row of {row.dtype} {row.shape}; '{self._spec.name}' has"
                f" {self._spec.dtype} {self._spec.shape_of_row}; correct its maker."
            )
        if self.rows == len(self._index):
            raise CacheError(f"{self._path}: all {self.rows} rows are taken; start another part.")
        chunk = self._encode(np.ascontiguousarray(row, self._dtype))
        self._file.write(chunk)
        self._file.write(checksum(chunk))
        length = len(chunk) + CHECKSUM_BYTES
        self._index[self.rows] = self._offset, length
        self._offset += length
        self.rows += 1
        return self.rows - 1

    def rewind(self, rows: int) -> None:
        """Remove the rows from number ``rows`` on: those of a clip that failed half-way."""
        if rows < self.rows:
            self._offset = int(self._index[rows, 0])
            self._file.seek(self._offset)
            self._file.truncate()
            self._index[rows:] = MISSING_CHUNK
            self.rows = rows

    def close(self) -> None:
        """Write the index and close the file; flushing it to disk is left to whoever publishes it."""
        if self._file.closed:
            return
        self._file.write(encoded_index(self._index))
        self._file.close()
        if self.rows == 0:
            self._path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()
            self._path.unlink(missing_ok=True)

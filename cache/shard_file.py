"""The bytes of a shard, apart from where they come from: chunks with checksums, then an index of them.

Drawn here; numbers are little endian, row i has its chunk at ``offset[i]``::

    chunk 0 | crc32c of it (4) | chunk 1 | crc32c of it (4) | ...       one chunk a row, in order
    offset 0 (8) | length 0 (8) | offset 1 | length 1 | ...             shard_rows pairs; length with crc;
                                                                        all bits set: no such row
    crc32c of these pairs (4)
"""

import google_crc32c
import numpy as np

__all__ = [
    "CHECKSUM_BYTES",
    "MISSING_CHUNK",
    "checksum",
    "empty_index",
    "encoded_index",
    "index_bytes",
    "parse_index",
    "without_checksum",
]

MISSING_CHUNK = 2**64 - 1
"""Offset and length of a chunk that a shard does not hold."""

CHECKSUM_BYTES = 4


def checksum(data: bytes | np.ndarray) -> bytes:
    """Return the CRC-32C of ``data`` as Zarr stores it: 4 bytes, little endian."""
    return google_crc32c.value(data).to_bytes(CHECKSUM_BYTES, "little")


def without_checksum(data: np.ndarray) -> np.ndarray:
    """Return (n,) uint8 without the checksum that ends it; raise ``ValueError`` where it does not match."""
    content = data[:-CHECKSUM_BYTES]
    if checksum(content) != data[-CHECKSUM_BYTES:].tobytes():
        raise ValueError("its checksum does not match")
    return content


def index_bytes(shard_rows: int) -> int:
    """Return how many bytes the index takes at the end of a shard."""
    return 16 * shard_rows + CHECKSUM_BYTES


def empty_index(shard_rows: int) -> np.ndarray:
    """Return the index of a shard without rows: ``(shard_rows, 2) uint64``, offset and length of each row."""
    return np.full((shard_rows, 2), MISSING_CHUNK, "<u8")


def encoded_index(index: np.ndarray) -> bytes:
    """Return the bytes that end a shard."""
    data = index.tobytes()
    return data + checksum(data)


def parse_index(data: np.ndarray, shard_rows: int) -> np.ndarray:
    """Return the index ``(shard_rows, 2) uint64`` of a shard that ends with ``data``, (n,) uint8.

    It is a copy, so that ``data`` need not be kept. Raises ``ValueError`` where it is cut off or damaged.
    """
    size = index_bytes(shard_rows)
    if len(data) < size:
        raise ValueError("it is cut off")
    return np.frombuffer(without_checksum(data[-size:]).tobytes(), "<u8").reshape(-1, 2)

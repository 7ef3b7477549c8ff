"""Files that are either whole or not there, also after a power cut.

Everything is written beside its place, flushed to the disk and renamed; that costs one fsync of the file
and one of its folder.
"""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "commit_file",
    "file_digest",
    "flush",
    "partial_path",
    "write_atomically",
    "write_if_changed",
]


def digest_of(file: BinaryIO) -> str:
    """Return the BLAKE2b-128 of the content of a file open for reading, in hexadecimal digits."""
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()  # type: ignore[arg-type]


def file_digest(path: Path) -> str:
    """Return the BLAKE2b-128 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return digest_of(file)


def partial_path(final: Path) -> Path:
    """Return the temporary name of ``final``: the same folder, so that a rename is enough."""
    return final.with_name(final.name + ".partial")


def commit_file(temporary: Path, final: Path) -> None:
    """Flush ``temporary`` to the disk and rename it to ``final``; the folder is flushed separately."""
    flush(temporary)
    temporary.replace(final)


def flush(path: Path) -> None:
    """Flush a file to the disk, or the names in a folder: before that a power cut may undo a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Make ``data`` the content of ``path``; its folder is created where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path)
    temporary.write_bytes(data)
    commit_file(temporary, path)
    flush(path.parent)


def write_if_changed(path: Path, data: bytes) -> bool:
    """Write as `write_atomically` does, unless ``path`` holds ``data`` already; return whether it wrote."""
    if path.is_file() and path.read_bytes() == data:
        return False
    write_atomically(path, data)
    return True

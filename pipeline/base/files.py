"""Files that are either whole or not there, also after a power cut.

Everything is written beside its place, flushed to the disk and renamed; that costs one fsync of the file
and one of its folder.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from harcache.pipeline.base.errors import HarcacheError, StandstillError

__all__ = [
    "commit_file",
    "file_digest",
    "flush",
    "partial_path",
    "refuse_to_overwrite",
    "refuse_to_replace_source",
    "write_atomically",
    "write_if_changed",
    "writing",
]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise StandstillError, with the file's name, when a block that writes ``path`` finds no room for it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise StandstillError(
            f"{path} could not be written: {os.strerror(error.errno).lower()}; make room and run again, "
            "which goes on from what is finished"
        ) from error


def refuse_to_overwrite(files: Iterable[Path], option: str) -> None:
    """Raise HarcacheError where one of the ``files`` that a command is about to write is there already.

    ``option`` is the one that says where they go; the command has ``--overwrite`` beside it.
    """
    there = [file for file in files if os.path.lexists(file)]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise HarcacheError(
            f"{option} would overwrite {there[0]}{more}; give --overwrite too to replace what is there, or "
            f"another {option}"
        )


def refuse_to_replace_source(source: Path, out: Path) -> None:
    """Raise HarcacheError where a command is told to write its result over the file that it reads."""
    if out.exists() and source.exists() and out.samefile(source):
        raise HarcacheError(
            f"{out} is the file that is read, so it would be lost; give the result another name"
        )


def commit_file(temporary: Path, final: Path) -> None:
    """Flush ``temporary`` to the disk and rename it to ``final``; the folder is flushed separately."""
    # A file system may find only now that it has no room.
    with writing(final):
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
    temporary = partial_path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
    commit_file(temporary, path)
    flush(path.parent)


def write_if_changed(path: Path, data: bytes) -> bool:
    """Write as `write_atomically` does, unless ``path`` holds ``data`` already; return whether it wrote."""
    if path.is_file() and path.read_bytes() == data:
        return False
    write_atomically(path, data)
    return True

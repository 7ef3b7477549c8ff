"""Files below a folder, found in the same order on every machine."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

__all__ = ["find_files", "is_utf8"]


def find_files(root: Path, suffixes: Collection[str]) -> list[str]:
    """Return the files under ``root`` with such suffixes, as sorted paths relative to it, with ``/``.

    Follows links to folders. Hidden files and folders don't count: they are other programs' leftovers.
    """
    return sorted(
        os.path.join(folder, name)
        for folder, names in _walk(root)
        for name in names
        if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
    )


def is_utf8(path: str) -> bool:
    """Tell whether a path that the system gave can be written in a table."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Give each folder, relative to ``root`` ("" for itself), and the names of its files."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        # A link to a folder above would otherwise be followed without end.
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield os.path.relpath(folder, root).removeprefix("."), names
        seen.add(real)

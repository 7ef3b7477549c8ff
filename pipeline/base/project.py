"""Finds the project that a command is for, from any folder in it, as git and DVC do."""

import os
from pathlib import Path

from harcache.pipeline.base.errors import HarcacheError

__all__ = ["PROJECT_FILES", "SHIPPED", "find_project"]

SHIPPED = Path(__file__).parents[2]
"""Where dvc.yaml, the demo's params.yaml and the presets lie, in the repository as where it is installed."""

PROJECT_FILES = ("dvc.yaml", "params.yaml")
"""What makes a folder a project."""


def find_project(start: Path) -> Path:
    """Return the nearest project from the folder ``start`` upwards: where dvc.yaml and params.yaml lie.

    Raises HarcacheError where there is none, or where it belongs to somebody else: a folder that all may
    write into, such as /tmp, would let others choose what is run here.
    """
    start = start.absolute()
    for folder in (start, *start.parents):
        files = [folder / name for name in PROJECT_FILES]
        if all(map(os.path.isfile, files)):
            _check_owners(folder, files, start)
            return folder
    raise HarcacheError(
        f"{start} is not in a project: neither it nor a folder above it has dvc.yaml and params.yaml; change "
        "to your project's folder, or create one with `harcache init`"
    )


def _check_owners(folder: Path, files: list[Path], start: Path) -> None:
    """Take a project further up if it belongs to this user, to root, or to the owner of ``start``."""
    trusted = {os.getuid(), 0, start.stat().st_uid}
    if folder != start and not {file.stat().st_uid for file in files} <= trusted:
        raise HarcacheError(
            f"the project in {folder}, above this folder, belongs to another user; change to it to use it"
        )

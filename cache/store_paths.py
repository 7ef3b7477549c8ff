"""Where shards and records lie inside a store."""

from pathlib import Path

from harcache.cache.array_spec import ArraySpec

__all__ = ["records_dir", "shard_path"]


def records_dir(path: str | Path) -> Path:
    """Return the folder for the parts' records inside a store.

    zarr-python warns about any name in a group that is no node of it, so this folder is one: an empty array.
    Zarr looks for an array's chunks by name alone, so other files may lie beside its metadata.
    """
    return Path(path) / "records"


def shard_path(path: str | Path, array: ArraySpec, part: int) -> Path:
    """Return the file of an array's shard number ``part``; a shard is one chunk of Zarr's outer grid."""
    return Path(path) / array.name / ".".join(["c", str(part), *["0"] * len(array.shape_of_row)])

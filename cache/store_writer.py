"""Making a store: its metadata before the shards, its index after them.

A store is incomplete in between, and reading it is refused; shards themselves are written by `shard_writer`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harcache.cache.array_spec import ArraySpec
from harcache.cache.clip_index import (
    IndexEntry,
    check_entries,
    index_arrays,
    index_digests,
)
from harcache.cache.errors import CacheError
from harcache.cache.group_metadata import (
    makers_attributes,
    new_attributes,
    read_attributes,
    require_same,
    spec_of,
    write_attributes,
)
from harcache.cache.store_paths import records_dir
from harcache.cache.zarr_writing import array_metadata, records_metadata, write_index_array
from harcache.pipeline.base.files import write_atomically, write_if_changed

__all__ = ["create_store", "mark_incomplete", "write_index"]


def create_store(
    path: str | Path, arrays: Sequence[ArraySpec], shard_rows: int, attributes: Mapping[str, Any]
) -> None:
    """Make a store, or keep the one that is there; ``write_index`` must follow before it can be opened.

    ``attributes`` (JSON values: dataset, parameters, fingerprint) are kept in the group. Calling it on a
    store of the same arrays and attributes keeps all shards but marks the store incomplete, since shards may
    now change. Raises ``StaleStoreError`` that says what differs when the store there is another one.
    """
    root = Path(path)
    wanted = new_attributes(arrays, shard_rows, attributes)
    if (root / "zarr.json").exists():
        require_same(root, makers_attributes(read_attributes(root)), wanted)
    root.mkdir(parents=True, exist_ok=True)
    write_attributes(root, {**wanted, "complete": False})
    write_if_changed(records_dir(root) / "zarr.json", records_metadata())
    for spec in arrays:
        if not (root / spec.name / "zarr.json").exists():
            write_atomically(root / spec.name / "zarr.json", array_metadata(spec, shard_rows, 0))


def write_index(path: str | Path, entries: Iterable[IndexEntry]) -> None:
    """Write the clip index of a store, in the order given, and mark the store complete.

    Arrays of the group, for C clips and R = parts * shard_rows rows: ``clip_id`` (C,) string, ``start`` (C,)
    int64 and ``length`` (C,) int32 in rows of the store, ``frame`` (R,) int32 source frame of each row or
    -1, ``box`` (C, 4) float32, ``image_size`` (C, 2) int32 height and width. The data arrays get R rows.
    The group's attributes then hold a digest of each of these files and of all metadata, and one of
    themselves. A crash leaves the store marked incomplete. Raises ``CacheError`` for entries that do not fit
    the shards.
    """
    root, clips = Path(path), list(entries)
    attributes = read_attributes(root)
    check_entries(root, attributes, clips)
    write_attributes(root, {**attributes, "complete": False})
    shard_rows = attributes["shard_rows"]
    rows = shard_rows * (1 + max((clip.part for clip in clips), default=-1))
    for name, values in index_arrays(clips, shard_rows, rows).items():
        write_index_array(root, name, values)
    # Written again, since it may be damaged; zarr's own resize deletes the shards beyond the new end.
    for name in attributes["arrays"]:
        metadata = array_metadata(spec_of(attributes, name), shard_rows, rows)
        write_if_changed(root / name / "zarr.json", metadata)
    digests = index_digests(root, attributes["arrays"])
    write_attributes(root, {**attributes, "complete": True, "index_files": digests})


def mark_incomplete(path: str | Path) -> None:
    """Have a store refuse to be opened until ``write_index`` has written its index again.

    Metadata of the group that can't be read are removed, so that ``create_store`` writes them again.
    """
    root = Path(path)
    try:
        write_attributes(root, {**read_attributes(root), "complete": False})
    except CacheError:
        (root / "zarr.json").unlink(missing_ok=True)

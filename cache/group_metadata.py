"""The attributes of a store's group: which format and arrays it has, what it was made of, and if it is whole.

They carry a digest of themselves, so that no changed bit goes unseen.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harcache.cache.array_spec import ArraySpec
from harcache.cache.errors import CacheError, IncompleteStoreError, StaleStoreError
from harcache.pipeline.base.errors import refuse_newer
from harcache.pipeline.base.files import write_atomically
from harcache.pipeline.base.fingerprints import fingerprint

__all__ = [
    "REMEDY",
    "makers_attributes",
    "new_attributes",
    "read_attributes",
    "require_complete",
    "require_same",
    "spec_of",
    "write_attributes",
]

REMEDY = "run 'harcache cache verify --repair' and the stage that makes the store"
"""What to do about damage, for messages."""

_FORMAT = "harcache.clips"
_FORMAT_VERSION = 2
_STATE = ("complete", "index_files", "digest")  # attributes that are not the maker's


def new_attributes(
    arrays: Sequence[ArraySpec], shard_rows: int, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the attributes of a store that is made; ``attributes`` are its maker's.

    Raises ``ValueError`` for keys that are the store's own.
    """
    own = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "shard_rows": shard_rows,
        "arrays": {spec.name: {k: v for k, v in asdict(spec).items() if k != "name"} for spec in arrays},
    }
    if shard_rows < 1 or own.keys() & attributes.keys() or "complete" in attributes:
        raise ValueError(f"shard_rows {shard_rows} must be positive and {[*own, 'complete']} are taken")
    # Through JSON, so that they compare equal with what is read back.
    return json.loads(json.dumps({**own, **attributes}))


def read_attributes(root: Path) -> dict[str, Any]:
    """Read the attributes of a store's group.

    Raises ``CacheError`` where there is no store, or it is damaged or of an older format version, and
    ``NewerFormatError`` where a newer version made it.
    """
    path = root / "zarr.json"
    try:
        text = path.read_bytes()
        attributes = json.loads(text).get("attributes", {})
        found = attributes.get("format"), attributes.get("format_version")
    except (FileNotFoundError, NotADirectoryError):
        raise CacheError(f"{root}: no store here; run the stage that makes it.") from None
    # JSON that is no object, or nested without end, too.
    except (ValueError, AttributeError, RecursionError) as error:
        raise CacheError(f"{path}: damaged ({error}); {REMEDY}.") from error
    if found != (_FORMAT, _FORMAT_VERSION):
        if found[0] == _FORMAT:
            refuse_newer(found[1], _FORMAT_VERSION, root)
        raise CacheError(
            f"{root}: found format {found}, expected {(_FORMAT, _FORMAT_VERSION)};"
            " delete the store and run the stage that makes it, or use the version that made it."
        )
    if text != _group_metadata(attributes):
        raise CacheError(f"{path}: damaged, it does not match its digest; {REMEDY}.")
    return attributes


def makers_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes without those that say in which state a store is."""
    return {key: value for key, value in attributes.items() if key not in _STATE}


def write_attributes(root: Path, attributes: Mapping[str, Any]) -> None:
    """Write the group's zarr.json, sealed by a digest of the attributes."""
    write_atomically(root / "zarr.json", _group_metadata(attributes))


def _group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """Return the group's zarr.json, with a digest of the attributes as one more of them."""
    own = {key: value for key, value in attributes.items() if key != "digest"}
    sealed = own | {"digest": fingerprint(own)}
    return json.dumps({"attributes": sealed, "zarr_format": 3, "node_type": "group"}, indent=2).encode()


def spec_of(attributes: Mapping[str, Any], name: str) -> ArraySpec:
    """Return the specification of an array from the attributes of its store."""
    fields = attributes["arrays"][name]
    return ArraySpec(name, **{**fields, "shape_of_row": tuple(fields["shape_of_row"])})


def require_complete(root: Path, attributes: Mapping[str, Any]) -> None:
    """Raise ``IncompleteStoreError`` where a store is not complete."""
    if not attributes["complete"]:
        raise IncompleteStoreError(f"{root}: the store is incomplete; run the stage that makes it again.")


def require_same(root: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ``StaleStoreError``, which names each difference, for attributes that are not those wanted."""
    differing = [
        f"{key} = {there!r}, but {asked!r} is asked for"
        for key, (there, asked) in _differences(found, wanted).items()
    ]
    if differing:
        raise StaleStoreError(
            f"{root}: made with {'; with '.join(differing)};"
            " run the stage that makes the store, or restore the parameters."
        )


def _differences(
    found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Return what differs, by dotted key: the values found and wanted."""
    differing: dict[str, tuple[Any, Any]] = {}
    for key in sorted(found.keys() | wanted.keys()):
        there, asked = found.get(key), wanted.get(key)
        if isinstance(there, dict) and isinstance(asked, dict):
            differing |= _differences(there, asked, f"{prefix}{key}.")
        elif there != asked:
            differing[prefix + key] = there, asked
    return differing

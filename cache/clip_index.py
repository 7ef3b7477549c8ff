"""The index of a store: which clip has which rows and what it shows, in small Zarr arrays with digests."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from harcache.cache.errors import CacheError
from harcache.cache.group_metadata import REMEDY, read_attributes, require_complete, spec_of
from harcache.cache.store_paths import shard_path
from harcache.cache.whole_array import read_whole_array
from harcache.pipeline.base.files import file_digest

__all__ = [
    "IndexEntry",
    "check_entries",
    "index_arrays",
    "index_digests",
    "index_problems",
    "read_index_array",
    "require_intact",
    "require_shard",
]

_INDEX_ARRAYS = ("clip_id", "start", "length", "frame", "box", "image_size")


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """Where a clip lies and what it shows.

    ``start`` and ``length``: rows within part ``part``. ``frames``: the source frame number of each row.
    ``box``: x1 y1 x2 y2 of the crop, pixels of the source frame. ``image_size``: its height and width.
    """

    id: str
    part: int
    start: int
    length: int
    frames: Sequence[int]
    box: tuple[float, float, float, float]
    image_size: tuple[int, int]


def check_entries(root: Path, attributes: Mapping[str, Any], clips: Sequence[IndexEntry]) -> None:
    """Raise ``CacheError`` for entries that contradict each other or do not fit the shards that are there."""
    shard_rows = attributes["shard_rows"]
    if len({clip.id for clip in clips}) < len(clips):
        raise CacheError(f"{root}: a clip is listed twice; make the manifest again.")
    for clip in clips:
        fits = 0 <= clip.start < clip.start + clip.length <= shard_rows
        if not fits or len(clip.frames) != clip.length:
            raise CacheError(
                f"{root}: clip '{clip.id}' has rows {clip.start} to {clip.start + clip.length} and"
                f" {len(clip.frames)} frame numbers, a shard has {shard_rows} rows; delete the part's record."
            )
    for before, after in pairwise(sorted(clips, key=lambda clip: (clip.part, clip.start))):
        if before.part == after.part and before.start + before.length > after.start:
            raise CacheError(
                f"{root}: clips '{before.id}' and '{after.id}' overlap in part {after.part};"
                " delete the part's record."
            )
    for name, part in product(attributes["arrays"], {clip.part for clip in clips}):
        require_shard(shard_path(root, spec_of(attributes, name), part))


def index_arrays(clips: Sequence[IndexEntry], shard_rows: int, rows: int) -> dict[str, np.ndarray]:
    """Return the arrays of the index by name, as ``store_writer.write_index`` describes them."""
    starts = [clip.part * shard_rows + clip.start for clip in clips]
    frame = np.full(rows, -1, np.int32)
    for start, clip in zip(starts, clips, strict=True):
        frame[start : start + clip.length] = clip.frames
    return {
        "clip_id": np.array([clip.id for clip in clips], object),
        "start": np.array(starts, np.int64),
        "length": np.array([clip.length for clip in clips], np.int32),
        "frame": frame,
        "box": np.array([clip.box for clip in clips], np.float32).reshape(-1, 4),
        "image_size": np.array([clip.image_size for clip in clips], np.int32).reshape(-1, 2),
    }


def read_index_array(root: Path, attributes: Mapping[str, Any], name: str) -> np.ndarray:
    """Read one array of the index whole; raise ``CacheError`` where it is damaged."""
    require_intact(root, attributes, name)
    return read_whole_array(root / name)


def index_digests(root: Path, arrays: Iterable[str]) -> dict[str, str]:
    """Return the digest of all metadata but the group's, and of the index's chunks, by name in the store."""
    return {file: file_digest(root / file) for file in _index_files(root, arrays)}


def index_problems(path: str | Path) -> dict[Path, str]:
    """Return the metadata and index files of a store that are not as written, each with what is wrong."""
    root = Path(path)
    try:
        attributes = read_attributes(root)
        require_complete(root, attributes)
    except CacheError as error:
        metadata = root / "zarr.json"
        return {metadata: str(error).removeprefix(f"{metadata}: ").removeprefix(f"{root}: ")}
    files = {root / file: digest for file, digest in attributes["index_files"].items()}
    return {file: problem for file, digest in files.items() if (problem := _file_problem(file, digest))}


def require_intact(root: Path, attributes: Mapping[str, Any], array: str) -> None:
    """Check an array's metadata, and its values where it is one of the index; raise ``CacheError``."""
    for file, digest in attributes["index_files"].items():
        if file.startswith(f"{array}/") and (problem := _file_problem(root / file, digest)):
            raise CacheError(f"{root / file}: the clip index is damaged, it {problem}; {REMEDY}.")


def require_shard(path: Path) -> None:
    """Raise ``CacheError`` where a shard is missing."""
    if not path.exists():
        raise CacheError(f"{path}: the shard is missing; run the stage that makes it again.")


def _index_files(root: Path, arrays: Iterable[str]) -> list[str]:
    """Return all metadata but the group's, and the chunks of the index: names relative to the store."""
    metadata = [root / name / "zarr.json" for name in ("records", *arrays)]
    index = [path for name in _INDEX_ARRAYS for path in (root / name).rglob("*") if path.is_file()]
    return sorted(path.relative_to(root).as_posix() for path in [*metadata, *index])


def _file_problem(path: Path, digest: str) -> str | None:
    if not path.is_file():
        return "is missing"
    return None if file_digest(path) == digest else "does not match its digest"

"""Clips as rows of sharded Zarr arrays, each shard written once by one worker without the others' help.

The stores stay plain Zarr v3; the writer streams rows instead of holding a whole shard as zarr-python does.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import pairwise, product
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import zarr
from numcodecs import Blosc, Zstd
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from harcache.cache.codecs import JpegCodec, encode_jpeg
from harcache.cache.errors import CacheError, IncompleteStoreError, StaleStoreError
from harcache.cache.shard_reader import CHECKSUM_BYTES, MISSING_CHUNK, ShardReader, checksum
from harcache.pipeline.base.errors import did_you_mean
from harcache.pipeline.base.files import file_digest, flush, write_atomically, write_if_changed
from harcache.pipeline.base.fingerprints import fingerprint

__all__ = [
    "ArraySpec",
    "ClipStore",
    "IndexEntry",
    "ShardWriter",
    "create_store",
    "index_problems",
    "mark_incomplete",
    "open_store",
    "records_dir",
    "shard_path",
    "write_index",
]

_FORMAT = "harcache.clips"
_FORMAT_VERSION = 2
_STATE = ("complete", "index_files", "digest")  # attributes that are not the maker's
_INDEX_ARRAYS = ("clip_id", "start", "length", "frame", "box", "image_size")
_ZSTD_LEVEL = 1
_BLOSC_LEVEL = 5
_REMEDY = "run 'harcache cache verify --repair' and the stage that makes the store"


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a store: its name, the shape and dtype of a row, and how each row is coded.

    ``codec``: "jpeg" for ``(H, W, 3) uint8`` RGB at ``quality`` (1 to 100), "zstd" for any pixels without
    loss, "blosc" (lz4, no shuffle) for sparse rows that must decode in microseconds.
    """

    name: str
    shape_of_row: tuple[int, ...]
    dtype: str
    codec: Literal["jpeg", "zstd", "blosc"]
    quality: int = 95

    def __post_init__(self) -> None:
        if self.codec not in ("jpeg", "zstd", "blosc"):
            known = did_you_mean(self.codec, ("jpeg", "zstd", "blosc"))
            raise CacheError(f"array '{self.name}': unknown codec '{self.codec}'. {known}")
        if self.codec == "jpeg" and (self.dtype != "uint8" or self.shape_of_row[2:] != (3,)):
            raise CacheError(
                f"array '{self.name}': rows are {self.dtype} {self.shape_of_row}, but jpeg needs"
                " uint8 (height, width, 3); choose zstd or blosc."
            )


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


def create_store(
    path: str | Path, arrays: Sequence[ArraySpec], shard_rows: int, attributes: Mapping[str, Any]
) -> None:
    """Make a store, or take the one that is there; ``write_index`` must follow before it can be opened.

    ``attributes`` (JSON values: dataset, parameters, fingerprint) are kept in the group. Calling it on a
    store of the same arrays and attributes keeps all shards but marks the store incomplete, since shards may
    now change. Raises ``StaleStoreError`` that says what differs when the store there is another one.
    """
    root = Path(path)
    wanted = _group_attributes(arrays, shard_rows, attributes)
    if (root / "zarr.json").exists():
        found = {key: value for key, value in _read_attributes(root).items() if key not in _STATE}
        _require_same(root, found, wanted)
    root.mkdir(parents=True, exist_ok=True)
    _write_attributes(root, {**wanted, "complete": False})
    write_if_changed(records_dir(root) / "zarr.json", _records_metadata())
    for spec in arrays:
        if not (root / spec.name / "zarr.json").exists():
            write_atomically(root / spec.name / "zarr.json", _array_metadata(spec, shard_rows, 0))


def records_dir(path: str | Path) -> Path:
    """Return the folder for the parts' records inside a store.

    zarr-python warns about any name in a group that is no node of it, so this folder is one: an empty array.
    Zarr looks for an array's chunks by name alone, so other files may lie beside its metadata.
    """
    return Path(path) / "records"


def shard_path(path: str | Path, array: ArraySpec, part: int) -> Path:
    """Return the file of an array's shard number ``part``; a shard is one chunk of Zarr's outer grid."""
    return Path(path) / array.name / ".".join(["c", str(part), *["0"] * len(array.shape_of_row)])


class ShardWriter:
    """Writes one shard, row by row, as zarr-python would byte for byte; memory is one row.

    The file is drawn here; numbers are little endian, row i has its chunk at ``offset[i]``::

        chunk 0 | crc32c of it (4) | chunk 1 | crc32c of it (4) | ...       one chunk a row, in order
        offset 0 (8) | length 0 (8) | offset 1 | length 1 | ...             shard_rows pairs; length with crc;
                                                                            all bits set: no such row
        crc32c of these pairs (4)

    As a context manager it closes the file, or removes it when the block raises. A shard without rows is
    no file, as in Zarr.
    """

    def __init__(self, path: str | Path, spec: ArraySpec, shard_rows: int) -> None:
        self._path, self._spec = Path(path), spec
        self._dtype = np.dtype(spec.dtype).newbyteorder("<")
        self._encode = _encoder(spec)
        self._index = np.full((shard_rows, 2), MISSING_CHUNK, "<u8")
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
        """Take back the rows from number ``rows`` on: those of a clip that failed half-way."""
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
        index = self._index.tobytes()
        self._file.write(index + checksum(index))
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
    attributes = _read_attributes(root)
    _check_entries(root, attributes, clips)
    _write_attributes(root, {**attributes, "complete": False})
    shard_rows = attributes["shard_rows"]
    rows = shard_rows * (1 + max((clip.part for clip in clips), default=-1))
    for name, values in _index_arrays(clips, shard_rows, rows).items():
        _write_index_array(root, name, values)
    # Written anew, since what is there may be damaged. (zarr's own resize deletes shards beyond the new end.)
    for name in attributes["arrays"]:
        metadata = _array_metadata(_spec(attributes, name), shard_rows, rows)
        write_if_changed(root / name / "zarr.json", metadata)
    digests = {file: file_digest(root / file) for file in _index_files(root, attributes["arrays"])}
    _write_attributes(root, {**attributes, "complete": True, "index_files": digests})


def index_problems(path: str | Path) -> dict[Path, str]:
    """Return the metadata and index files of a store that are not as written, each with what is wrong."""
    root = Path(path)
    try:
        attributes = _read_attributes(root)
        _require_complete(root, attributes)
    except CacheError as error:
        metadata = root / "zarr.json"
        return {metadata: str(error).removeprefix(f"{metadata}: ").removeprefix(f"{root}: ")}
    files = {root / file: digest for file, digest in attributes["index_files"].items()}
    return {file: problem for file, digest in files.items() if (problem := _file_problem(file, digest))}


def mark_incomplete(path: str | Path) -> None:
    """Make a store refuse to be opened until ``write_index`` has made its index anew.

    Where the group's own metadata can't be read they are removed, so that ``create_store`` makes them again.
    """
    root = Path(path)
    try:
        _write_attributes(root, {**_read_attributes(root), "complete": False})
    except CacheError:
        (root / "zarr.json").unlink(missing_ok=True)


def open_store(path: str | Path, expected: Mapping[str, Any] | None = None) -> "ClipStore":
    """Open a complete store for reading.

    ``expected``: attributes that it must have, as ``create_store`` was given them. Raises ``CacheError``
    when there is no store, or when it is incomplete, damaged or of another format version, and
    ``StaleStoreError`` that says what differs where it is not the one expected.
    """
    store = ClipStore(Path(path))
    if expected is not None:
        wanted = json.loads(json.dumps(expected))
        _require_same(store.path, {key: store.attributes.get(key) for key in wanted}, wanted)
    return store


class ClipStore:
    """A store of clips: ``ids`` in manifest order, the rows of each, and readers of its arrays.

    ``start``, ``length`` (C,), ``box`` (C, 4) and ``image_size`` (C, 2) are the index as ``write_index``
    describes it; ``attributes`` are the group's. It pickles as its path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attributes = _read_attributes(path)
        _require_complete(path, self.attributes)
        self.ids: tuple[str, ...] = tuple(str(id) for id in self._read_index("clip_id"))
        self.start = self._read_index("start")
        self.length = self._read_index("length")
        self.boxes = self._read_index("box")
        self.image_sizes = self._read_index("image_size")
        self._numbers = {id: number for number, id in enumerate(self.ids)}
        self._readers = cache(lambda name: ShardReader(self.path, name))

    def __reduce__(self) -> tuple[Callable[[Path], "ClipStore"], tuple[Path]]:
        return open_store, (self.path,)

    def __len__(self) -> int:
        return len(self.ids)

    def index(self, id: str) -> int:
        """Return the number of a clip, its place in ``ids`` and in the index arrays."""
        try:
            return self._numbers[id]
        except KeyError:
            raise CacheError(
                f"{self.path}: no clip '{id}' among {len(self)}; see the stage's failures, or run it again."
            ) from None

    def rows(self, id: str) -> slice:
        """Return the rows of a clip, the same in all arrays of the store."""
        clip = self.index(id)
        return slice(int(self.start[clip]), int(self.start[clip] + self.length[clip]))

    def array(self, name: str) -> zarr.Array:
        """Return an array as zarr-python sees it, after checking that no shard of a clip is missing.

        Zarr itself reads a missing shard as zeros.
        """
        spec = self._spec(name)
        self._require_intact(name)
        for part in np.unique(self.start // self.attributes["shard_rows"]).tolist():
            _require_shard(shard_path(self.path, spec, part))
        return zarr.open_array(store=self.path / name, mode="r")

    def reader(self, name: str) -> ShardReader:
        """Return the fast reader of an array, always the same one."""
        self._require_intact(self._spec(name).name)
        return self._readers(name)

    def read(self, name: str, id: str) -> np.ndarray:
        """Read all rows of a clip from one array: ``(length, *shape_of_row)``."""
        rows, reader = self.rows(id), self.reader(name)
        out = np.empty((rows.stop - rows.start, *reader.row_shape), reader.dtype)
        reader.read_rows(range(rows.start, rows.stop), out)
        return out

    def frames(self, id: str) -> np.ndarray:
        """Read the RGB frames of a clip: ``(length, S, S, 3) uint8``."""
        return self.read("frames", id)

    def heatmaps(self, id: str) -> np.ndarray:
        """Read the pose heatmaps of a clip: ``(length, V, S, S) uint8``, 255 is a certain joint."""
        return self.read("volume", id)

    def keypoints(self, id: str) -> np.ndarray:
        """Read the keypoints of a clip: ``(length, persons, V, 3) float16``, x y in the crop 0..1, score."""
        return self.read("keypoints", id)

    def positions(self, id: str) -> np.ndarray:
        """Read the joints in space: ``(length, persons, V, 3) float32``, metres; Kinect's skeletons alone."""
        return self.read("positions", id)

    def box(self, id: str) -> np.ndarray:
        """Return the crop of a clip: ``(4,) float32`` x1 y1 x2 y2, pixels of the source frame."""
        return self.boxes[self.index(id)]

    def image_size(self, id: str) -> tuple[int, int]:
        """Return height and width of a clip's source frames in pixels."""
        height, width = self.image_sizes[self.index(id)].tolist()
        return height, width

    def frame_numbers(self, id: str) -> np.ndarray:
        """Return the source frame number of each stored row: ``(length,) int32``."""
        return self._frame_of_row[self.rows(id)]

    @cached_property
    def _frame_of_row(self) -> np.ndarray:
        return self._read_index("frame")

    def _read_index(self, name: str) -> np.ndarray:
        self._require_intact(name)
        return np.asarray(zarr.open_array(store=self.path / name, mode="r")[...])

    def _require_intact(self, array: str) -> None:
        """Check the array's metadata, and its values where it is one of the index."""
        for file, digest in self.attributes["index_files"].items():
            if file.startswith(f"{array}/") and (problem := _file_problem(self.path / file, digest)):
                raise CacheError(f"{self.path / file}: the clip index is damaged, it {problem}; {_REMEDY}.")

    def _spec(self, name: str) -> ArraySpec:
        arrays = self.attributes["arrays"]
        if name not in arrays:
            raise CacheError(f"{self.path}: no array '{name}' of frames. {did_you_mean(name, arrays)}")
        return _spec(self.attributes, name)


def _group_attributes(
    arrays: Sequence[ArraySpec], shard_rows: int, attributes: Mapping[str, Any]
) -> dict[str, Any]:
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


def _require_same(root: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
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


def _require_complete(root: Path, attributes: Mapping[str, Any]) -> None:
    if not attributes["complete"]:
        raise IncompleteStoreError(f"{root}: the store is incomplete; run the stage that makes it again.")


def _read_attributes(root: Path) -> dict[str, Any]:
    path = root / "zarr.json"
    try:
        text = path.read_bytes()
        attributes = json.loads(text).get("attributes", {})
        found = attributes.get("format"), attributes.get("format_version")
    except (FileNotFoundError, NotADirectoryError):
        raise CacheError(f"{root}: no store here; run the stage that makes it.") from None
    # JSON that is no object, or nested without end, too.
    except (ValueError, AttributeError, RecursionError) as error:
        raise CacheError(f"{path}: damaged ({error}); {_REMEDY}.") from error
    if found != (_FORMAT, _FORMAT_VERSION):
        raise CacheError(
            f"{root}: found format {found}, expected {(_FORMAT, _FORMAT_VERSION)};"
            " delete the store and run the stage that makes it, or use the version that made it."
        )
    if text != _group_metadata(attributes):
        raise CacheError(f"{path}: damaged, it does not match its digest; {_REMEDY}.")
    return attributes


def _write_attributes(root: Path, attributes: Mapping[str, Any]) -> None:
    write_atomically(root / "zarr.json", _group_metadata(attributes))


def _group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """Return the group's zarr.json, with a digest of the attributes as one more of them."""
    own = {key: value for key, value in attributes.items() if key != "digest"}
    sealed = own | {"digest": fingerprint(own)}
    return json.dumps({"attributes": sealed, "zarr_format": 3, "node_type": "group"}, indent=2).encode()


def _index_files(root: Path, arrays: Iterable[str]) -> list[str]:
    """Return all metadata but the group's, and the chunks of the index: names relative to the store."""
    metadata = [root / name / "zarr.json" for name in ("records", *arrays)]
    index = [path for name in _INDEX_ARRAYS for path in (root / name).rglob("*") if path.is_file()]
    return sorted(path.relative_to(root).as_posix() for path in [*metadata, *index])


def _file_problem(path: Path, digest: str) -> str | None:
    if not path.is_file():
        return "is missing"
    return None if file_digest(path) == digest else "does not match its digest"


def _flush_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder, folder.parent]:
        flush(path)


def _array_metadata(spec: ArraySpec, shard_rows: int, rows: int) -> bytes:
    serializer, compressors = _zarr_codecs(spec)
    return _metadata(
        shape=(rows, *spec.shape_of_row),
        dtype=spec.dtype,
        chunks=(1, *spec.shape_of_row),
        shards=(shard_rows, *spec.shape_of_row),
        serializer=serializer,
        compressors=[*compressors, Crc32cCodec()],
        fill_value=0,
        # One folder an array: shards are renamed into place, which is safest within a folder.
        chunk_key_encoding={"name": "default", "separator": "."},
    )


def _records_metadata() -> bytes:
    about = "The records of the store's parts lie beside this file; the array itself is empty."
    return _metadata(shape=(0,), dtype="uint8", attributes={"about": about})


def _metadata(**array: Any) -> bytes:
    """Return the zarr.json that zarr-python writes for an array."""
    written: dict[str, Any] = {}
    zarr.create_array(store=written, **array)
    return written["zarr.json"].to_bytes()


def _zarr_codecs(spec: ArraySpec) -> tuple[Any, list[Any]]:
    """Return the serializer and the compressor that make the bytes that ``_encoder`` makes."""
    if spec.codec == "jpeg":
        return JpegCodec(spec.quality), []
    if spec.codec == "zstd":
        return BytesCodec(), [ZstdCodec(level=_ZSTD_LEVEL)]
    typesize = np.dtype(spec.dtype).itemsize
    return BytesCodec(), [
        BloscCodec(cname="lz4", clevel=_BLOSC_LEVEL, shuffle="noshuffle", typesize=typesize)
    ]


def _encoder(spec: ArraySpec) -> Callable[[np.ndarray], bytes]:
    if spec.codec == "jpeg":
        return lambda row: encode_jpeg(row, spec.quality)
    if spec.codec == "zstd":
        return Zstd(level=_ZSTD_LEVEL).encode
    typesize = np.dtype(spec.dtype).itemsize
    return Blosc("lz4", clevel=_BLOSC_LEVEL, shuffle=Blosc.NOSHUFFLE, typesize=typesize).encode


def _check_entries(root: Path, attributes: Mapping[str, Any], clips: Sequence[IndexEntry]) -> None:
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
        _require_shard(shard_path(root, _spec(attributes, name), part))


def _spec(attributes: Mapping[str, Any], name: str) -> ArraySpec:
    fields = attributes["arrays"][name]
    return ArraySpec(name, **{**fields, "shape_of_row": tuple(fields["shape_of_row"])})


def _require_shard(path: Path) -> None:
    if not path.exists():
        raise CacheError(f"{path}: the shard is missing; run the stage that makes it again.")


def _index_arrays(clips: Sequence[IndexEntry], shard_rows: int, rows: int) -> dict[str, np.ndarray]:
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


def _write_index_array(root: Path, name: str, values: np.ndarray) -> None:
    array = zarr.create_array(
        store=root,
        name=name,
        shape=values.shape,
        dtype=str if values.dtype == object else values.dtype,
        chunks=tuple(max(size, 1) for size in values.shape),
        compressors=[ZstdCodec(), Crc32cCodec()],
        # Every chunk is written, so that one that is not there is known to be lost.
        config={"write_empty_chunks": True},
        overwrite=True,
    )
    array[...] = values
    _flush_tree(root / name)

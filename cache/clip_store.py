"""A store of clips, opened for reading: which rows a clip has, and what is in them.

The stores are plain Zarr v3; rows are read by `shard_reader`, which is much faster than zarr-python.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harcache.cache.array_spec import ArraySpec
from harcache.cache.clip_index import read_index_array, require_intact, require_shard
from harcache.cache.errors import CacheError
from harcache.cache.group_metadata import read_attributes, require_complete, require_same, spec_of
from harcache.cache.shard_reader import ShardReader
from harcache.cache.store_paths import shard_path
from harcache.pipeline.base.errors import did_you_mean

if TYPE_CHECKING:
    import zarr

__all__ = ["ClipStore", "open_store"]


def open_store(path: str | Path, expected: Mapping[str, Any] | None = None) -> "ClipStore":
    """Open a complete store for reading.

    ``expected``: attributes that it must have, as ``create_store`` was given them. Raises ``CacheError``
    when there is no store, or when it is incomplete, damaged or of an older format version,
    ``StaleStoreError`` that says what differs where it is not the one expected, and ``NewerFormatError``
    where a newer version made it.
    """
    store = ClipStore(Path(path))
    if expected is not None:
        wanted = json.loads(json.dumps(expected))
        require_same(store.path, {key: store.attributes.get(key) for key in wanted}, wanted)
    return store


class ClipStore:
    """A store of clips: ``ids`` in manifest order, the rows of each, and readers of its arrays.

    ``start``, ``length`` (C,), ``boxes`` (C, 4) and ``image_sizes`` (C, 2) are the index as
    ``store_writer.write_index`` describes it; ``attributes`` are the group's. It pickles as its path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attributes = read_attributes(path)
        require_complete(path, self.attributes)
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

    def array(self, name: str) -> "zarr.Array":
        """Return an array as zarr-python sees it, after checking that no shard of a clip is missing.

        Zarr itself reads a missing shard as zeros.
        """
        spec = self._spec(name)
        require_intact(self.path, self.attributes, name)
        for part in np.unique(self.start // self.attributes["shard_rows"]).tolist():
            require_shard(shard_path(self.path, spec, part))
        import zarr

        return zarr.open_array(store=self.path / name, mode="r")

    def reader(self, name: str) -> ShardReader:
        """Return the fast reader of an array, always the same one."""
        require_intact(self.path, self.attributes, self._spec(name).name)
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
        return read_index_array(self.path, self.attributes, name)

    def _spec(self, name: str) -> ArraySpec:
        arrays = self.attributes["arrays"]
        if name not in arrays:
            raise CacheError(f"{self.path}: no array '{name}' of frames. {did_you_mean(name, arrays)}")
        return spec_of(self.attributes, name)

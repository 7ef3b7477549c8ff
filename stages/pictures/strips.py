"""A clip in one small picture, for a page: some of its cached frames, and its heatmaps over them.

Read from the stores, so that one sees what training sees; a clip that no store holds shows its first frame.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from harcache import cache
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip
from harcache.pipeline.video.frames import read_frames

__all__ = ["Picture", "Strips"]

_FRAMES = 4
_SIDE = 112  # pixels of a frame
_QUALITY = 82
_DARK = 0.4  # of a frame's light, below its heatmaps
_HEAT = (240, 228, 66)  # Okabe and Ito's yellow, seen by the colour-blind on dark ground


class Picture(NamedTuple):
    """A picture for a page without files beside it: an address that holds it, and its size in pixels."""

    address: str
    width: int
    height: int


class Strips:
    """Pictures of clips: from ``stores``, by array, or for ``clips``, by id, from ``videos``."""

    def __init__(
        self, stores: Mapping[str, cache.ClipStore], videos: Path, clips: Mapping[str, Clip]
    ) -> None:
        self._stores = {array: (store, frozenset(store.ids)) for array, store in stores.items()}
        self._videos = videos
        self._clips = clips

    def of(self, id: str) -> Picture | None:
        """Return a clip's picture, or None where there is none to be had."""
        strip = self._cached(id)
        if strip is None:
            strip = self._first_frame(id)
        if strip is None:
            return None
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(strip), quality=_QUALITY)
        return Picture(_data_uri(jpeg, "image/jpeg"), strip.shape[1], strip.shape[0])

    def _cached(self, id: str) -> np.ndarray | None:
        """Draw frames above, heatmaps below: (2 or 1 sides, 4 sides, 3) uint8."""
        frames = self._rows("frames", id)
        volumes = self._rows("volume", id)
        if frames is not None:
            frames = np.stack([_resized(frame) for frame in frames])
        if volumes is None:
            return None if frames is None else np.concatenate(frames, axis=1)
        heat = np.stack([_resized(volume.max(axis=0)) for volume in volumes])[..., None] / 255
        below = np.zeros((*heat.shape[:3], 3)) if frames is None else _DARK * frames
        drawn = ((1 - heat) * below + heat * np.array(_HEAT)).astype(np.uint8)
        rows = [drawn] if frames is None else [frames, drawn]
        return np.concatenate([np.concatenate(row, axis=1) for row in rows])

    def _first_frame(self, id: str) -> np.ndarray | None:
        """Return a clip's first frame, as high as a row."""
        clip = self._clips.get(id)
        if clip is None:
            return None
        try:
            frame = next(read_frames(self._videos / clip.video, clip.start, clip.start + 1))
        except (HarcacheError, OSError):
            # The page is about the caches: a video that is gone since only lacks its picture.
            return None
        height, width = frame.shape[:2]
        wide = min(max(1, round(_SIDE * width / height)), _FRAMES * _SIDE)
        return cv2.resize(frame, (wide, _SIDE), interpolation=cv2.INTER_AREA)

    def _rows(self, array: str, id: str) -> np.ndarray | None:
        """Read four rows of a clip, evenly over it, or None where no store holds them."""
        store, ids = self._stores.get(array, (None, frozenset()))
        if store is None or id not in ids:
            return None
        rows, reader = store.rows(id), store.reader(array)
        out = np.empty((_FRAMES, *reader.row_shape), reader.dtype)
        reader.read_rows(np.linspace(rows.start, rows.stop - 1, _FRAMES).round().astype(int), out)
        return out


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _resized(image: np.ndarray) -> np.ndarray:
    way = cv2.INTER_AREA if image.shape[0] > _SIDE else cv2.INTER_CUBIC
    return cv2.resize(image, (_SIDE, _SIDE), interpolation=way)

"""What an array of a store is: its rows, their codec, and an encoder of rows.

`zarr_writing` names the same codecs in the metadata, so that zarr-python reads what is encoded here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numcodecs import Blosc, Zstd

from harcache.cache.errors import CacheError
from harcache.cache.jpeg import encode_jpeg
from harcache.pipeline.base.errors import did_you_mean

__all__ = ["BLOSC_LEVEL", "ZSTD_LEVEL", "ArraySpec", "row_encoder"]

ZSTD_LEVEL = 1
BLOSC_LEVEL = 5


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


def row_encoder(spec: ArraySpec) -> Callable[[np.ndarray], bytes]:
    """Return what makes a row, C-contiguous, into the bytes of its chunk."""
    if spec.codec == "jpeg":
        return lambda row: encode_jpeg(row, spec.quality)
    if spec.codec == "zstd":
        return Zstd(level=ZSTD_LEVEL).encode
    typesize = np.dtype(spec.dtype).itemsize
    return Blosc("lz4", clevel=BLOSC_LEVEL, shuffle=Blosc.NOSHUFFLE, typesize=typesize).encode

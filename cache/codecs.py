"""JPEG frames as a Zarr v3 codec, for zarr-python and whoever reads the stores by it.

The name is the project's own: the registered ``jpeg`` has other rules.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec

from harcache.cache.errors import CacheError
from harcache.cache.jpeg import JPEG_NAME, decode_jpeg, encode_jpeg

__all__ = ["JpegCodec"]


@dataclass(frozen=True)
class JpegCodec(ArrayBytesCodec):
    """The codec ``harcache.jpeg``: one row ``(1, H, W, 3) uint8`` RGB to the bytes of one JPEG file.

    ``quality`` (1 to 100) is the IJG scale. Zarr finds the class by its entry point.
    """

    quality: int = 95
    is_fixed_size = False

    def __post_init__(self) -> None:
        if type(self.quality) is not int or not 1 <= self.quality <= 100:
            raise CacheError(
                f"JPEG quality is {self.quality!r}; expected a whole number from 1 to 100; correct it."
            )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make the codec of its Zarr metadata."""
        configuration = data.get("configuration") or {}
        if data.get("name") != JPEG_NAME or set(configuration) != {"quality"}:
            raise CacheError(
                f"Zarr metadata hold {data!r}; expected {JPEG_NAME} with 'quality' alone;"
                " open the store with the version of harcache that made it."
            )
        return cls(quality=configuration["quality"])

    def to_dict(self) -> dict[str, Any]:
        """Return the Zarr metadata of the codec."""
        return {"name": JPEG_NAME, "configuration": {"quality": self.quality}}

    def evolve_from_array_spec(self, array_spec: Any) -> Self:
        """Refuse arrays whose chunks are not single RGB frames."""
        shape, dtype = array_spec.shape, array_spec.dtype.to_native_dtype()
        if dtype != np.uint8 or len(shape) != 4 or (shape[0], shape[3]) != (1, 3):
            raise CacheError(
                f"{JPEG_NAME} got chunks of {dtype} {shape}; expected uint8 (1, height, width, 3);"
                " choose another codec or other chunks."
            )
        return self

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        """Raise, as every codec of variable size does."""
        raise NotImplementedError

    async def _decode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        out = np.empty(chunk_spec.shape, np.uint8)
        await asyncio.to_thread(decode_jpeg, chunk_data.as_numpy_array(), out[0])
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(out)

    async def _encode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        data = await asyncio.to_thread(encode_jpeg, chunk_data.as_numpy_array()[0], self.quality)
        return chunk_spec.prototype.buffer.from_bytes(data)

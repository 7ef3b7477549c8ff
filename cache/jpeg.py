"""Frames as JPEG, because a lossless copy of lossy video takes seven times the space; without zarr-python.

Chroma is kept whole (4:4:4).
"""

import numpy as np
import simplejpeg

__all__ = ["JPEG_NAME", "decode_jpeg", "encode_jpeg"]

JPEG_NAME = "harcache.jpeg"


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """Encode ``(H, W, 3) uint8`` RGB; the same pixels always give the same bytes."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(frame), quality=quality, colorspace="RGB", colorsubsampling="444"
    )


def decode_jpeg(data: bytes | np.ndarray, out: np.ndarray) -> None:
    """Decode straight into ``out``, C-contiguous ``(H, W, 3) uint8`` RGB. The GIL is released meanwhile.

    Raises ``ValueError`` when the data are damaged or of another size than ``out``.
    """
    frame = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)
    if frame.shape != out.shape:
        raise ValueError(f"the JPEG holds a frame of {frame.shape}, expected {out.shape}")

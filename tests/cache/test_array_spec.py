"""What an array may be: a codec that is known, and rows that fit it."""

import pytest

from harcache.cache.array_spec import ArraySpec
from harcache.cache.errors import CacheError


def test_jpeg_takes_rgb_frames_only():
    with pytest.raises(CacheError, match=r"jpeg needs uint8 \(height, width, 3\)"):
        ArraySpec("volume", (17, 6, 6), "uint8", "jpeg")


def test_an_unknown_codec_is_named_with_the_nearest():
    with pytest.raises(CacheError, match=r"unknown codec 'zst'\. Did you mean 'zstd'"):
        ArraySpec("frames", (8, 8, 3), "uint8", "zst")

"""The bytes of a shard: its index is read from its end alone, and no damage of them goes unseen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache.cache.shard_file import (
    MISSING_CHUNK,
    checksum,
    empty_index,
    encoded_index,
    index_bytes,
    parse_index,
    without_checksum,
)


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


_PAIRS = st.lists(st.tuples(*[st.integers(0, MISSING_CHUNK)] * 2), min_size=1, max_size=20)


@given(_PAIRS, st.binary(max_size=30))
def test_an_index_is_read_from_the_end_of_a_shard(pairs, chunks):
    index = np.array(pairs, np.uint64)
    end = encoded_index(index)
    assert len(end) == index_bytes(len(index))
    for data in (end, chunks + end):
        np.testing.assert_array_equal(parse_index(_bytes(data), len(index)), index)


@given(_PAIRS, st.data())
def test_every_changed_bit_of_an_index_is_found(pairs, data):
    damaged = bytearray(encoded_index(np.array(pairs, np.uint64)))
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="checksum does not match"):
        parse_index(_bytes(bytes(damaged)), len(pairs))


def test_an_index_that_is_cut_off_is_refused():
    with pytest.raises(ValueError, match="cut off"):
        parse_index(_bytes(encoded_index(empty_index(3))[1:]), 3)


def test_a_shard_without_rows_has_none_in_its_index():
    assert (parse_index(_bytes(encoded_index(empty_index(3))), 3) == MISSING_CHUNK).all()


@given(st.binary(max_size=50))
def test_a_checksum_is_taken_off_where_it_matches(content):
    assert without_checksum(_bytes(content + checksum(content))).tobytes() == content


@pytest.mark.parametrize("data", [b"", b"abc", b"abcd", b"content" + checksum(b"contents")])
def test_a_checksum_that_does_not_match_is_refused(data):
    with pytest.raises(ValueError, match="checksum does not match"):
        without_checksum(_bytes(data))

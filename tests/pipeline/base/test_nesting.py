"""Values of strangers are bounded before anything walks them."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache.pipeline.base.nesting import check_nesting

_PLAIN = st.recursive(
    st.none() | st.integers() | st.text() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(_PLAIN)
def test_what_can_be_printed_passes(value: Any) -> None:
    check_nesting(value)


def test_what_is_held_in_several_places_passes() -> None:
    shared = [1, 2, (3,)]
    check_nesting({"a": shared, "b": [shared, shared], "c": [[shared]]})


@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
def test_lists_that_hold_one_another_without_end_are_refused_at_once(kind: str) -> None:
    value: Any = ()
    for _ in range(60):
        value = {"list": [value, value], "tuple": (value, value), "dict": {1: value, 2: value}}[kind]
    begun = time.monotonic()
    with pytest.raises(ValueError, match="holds more than 20,000,000 values, one in another"):
        check_nesting(value)
    assert time.monotonic() - begun < 5


def test_a_list_that_holds_itself_is_refused() -> None:
    value: list[Any] = [1]
    value.append({"itself": value})
    with pytest.raises(ValueError, match="nested more than 100 deep, or hold themselves"):
        check_nesting(value)


def test_what_is_nested_deeper_than_python_may_call_is_refused() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        check_nesting(value)

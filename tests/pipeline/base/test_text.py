"""What comes from strangers is printed as one line that does nothing but show itself."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache.pipeline.base.text import printable, shown


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain ünïcode 漢字 😀", "plain ünïcode 漢字 😀"),
        ("a\u200cb\u200d", "a\u200cb\u200d"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x9b31m", "\\x9b31m"),
        ("txt.\u202egpm", "txt.\\u202egpm"),
        ("\u2028", "\\u2028"),
        ("caf\udce9.mp4", "caf\\udce9.mp4"),
        ("\U000e0041", "\\U000e0041"),
        (Path("a\tb"), "a\\tb"),
    ],
)
def test_what_can_not_be_seen_is_escaped(text: str | Path, printed: str) -> None:
    assert printable(text) == printed


@given(st.text(st.characters()))
def test_any_text_becomes_a_line_that_can_be_written(text: str) -> None:
    printed = printable(text)
    printed.encode()
    assert len(printed.splitlines()) <= 1
    assert all(one.isprintable() or one in "\u200c\u200d" for one in printed)
    assert printable(printed) == printed


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (7, "7"),
        ("a\x1b", r"'a\x1b'"),
        ([[[[1]]]] * 9, "[[[...]], [[...]], [[...]], ...]"),
        ({n: n for n in range(9)}, "{0: 0, 1: 1, 2: 2, ...}"),
        (None, "None"),
    ],
)
def test_a_value_is_shown_in_a_few_words(value: object, printed: str) -> None:
    assert shown(value) == printed


def test_values_of_any_size_are_shown_in_a_line() -> None:
    assert len(shown("x" * 10**6)) < 100
    # Python itself refuses to write it.
    assert shown(10**5000) == "a number of 16610 bits"

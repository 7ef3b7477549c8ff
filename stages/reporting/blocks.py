"""What a section of the report is made of: tables that a reader can sort, and cards of clips."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from harcache.stages.pictures.strips import Picture

__all__ = ["Card", "Table", "Value", "percent"]


class Value(NamedTuple):
    """A cell of a table: what it is sorted by, and its text."""

    sort: float
    text: str


class Table(NamedTuple):
    """A table that a reader can sort; rows hold text, whole numbers and `Value`."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Card(NamedTuple):
    """A clip with its picture, if there is one, and what there is to say of it."""

    id: str
    picture: Picture | None
    lines: Sequence[str]
    flags: Sequence[str] = ()


def percent(part: float) -> Value:
    """Return a share, from 0 to 1, as a cell."""
    return Value(part, f"{part:.1%}")

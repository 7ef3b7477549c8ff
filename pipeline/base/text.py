"""Text from strangers on its way to a terminal: names, reasons and labels that are not to be believed.

A file's name may hold any bytes: escape sequences that move the cursor or hide lines, line breaks that fake
a line of ours, bytes that are no UTF-8, a value may be as long as its file.
"""

import reprlib
from pathlib import Path

__all__ = ["printable", "shown"]

_LONGEST = 1000  # characters of a message
_JOINERS = "\u200c\u200d"  # which some scripts and pictures need, and nothing is hidden by


def printable(text: str | Path) -> str:
    """Return text as one line that does nothing but show itself: all that can't be seen is escaped.

    Control and formatting characters, line breaks and undecodable bytes come as ``\\\\x1b`` or ``\\\\udcff``.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in _JOINERS else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class _Short(reprlib.Repr):
    """Shows any value, whatever it holds, in a few words."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple, self.maxset = 2, 3, 3, 3, 3
        self.maxstring = self.maxother = 60

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write numbers of thousands of digits.
        return str(x) if x.bit_length() < 200 else f"a number of {x.bit_length()} bits"


_short = _Short()


def shown(value: object) -> str:
    """Return what a value from a file is, for a message: one line of limited length."""
    return printable(_short.repr(value))[:_LONGEST]

"""The one base of every error that a user may see.

Such an error says in one line what was found, what was expected and what to do; the command line prints
that line alone. Anything else that is raised is a defect of the program and keeps its traceback.
"""

import difflib
import re
from collections.abc import Iterable

__all__ = ["HarcacheError", "NewerFormatError", "StandstillError", "did_you_mean", "refuse_newer"]

_MOST_NAMED = 40  # a dataset may have 100,000 clips


class HarcacheError(Exception):
    """An error with a message for the user: found, expected, what to do, in one line."""


class StandstillError(HarcacheError):
    """An error that all other work would meet as well, so that none is begun after it."""


class NewerFormatError(StandstillError):
    """A file is whole, but a newer version wrote it, so that nothing of it may be removed or made again."""

    def __init__(self, where: object, found: object, known: object) -> None:
        super().__init__(
            f"{where} was written by a newer version of harcache (format {found}, this one reads {known}), "
            "or is damaged; install that version, or remove the file if there never was one"
        )

    def __reduce__(self) -> tuple[type[HarcacheError], tuple[str]]:
        # From a worker it comes as its message.
        return StandstillError, (str(self),)


def refuse_newer(found: object, known: int | str, where: object) -> None:
    """Raise NewerFormatError where a format is ``known`` but for its number, which is higher.

    ``known`` is a number, or text that ends with one; ``found`` may be anything.
    """
    if type(found) is type(known):
        (name, number), (known_name, known_number) = (_name_and_number(str(one)) for one in (found, known))
        if name == known_name and number > known_number:
            raise NewerFormatError(where, found, known)


def _name_and_number(format: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)(\d{1,9})", format, re.DOTALL)
    return (match[1], int(match[2])) if match else (format, 0)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return a sentence that names the nearest of ``choices``, or the first of them when none is near."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean '{near[0]}'?"
    more = f" and {len(known) - _MOST_NAMED} more" if len(known) > _MOST_NAMED else ""
    return f"Known: {', '.join(known[:_MOST_NAMED])}{more}." if known else ""

"""The one base of every error that a user may see.

Such an error says in one line what was found, what was expected and what to do; the command line prints
that line alone. Anything else that is raised is a defect of the program and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

__all__ = ["HarcacheError", "StandstillError", "did_you_mean"]

_MOST_NAMED = 40  # a dataset may have 100,000 clips


class HarcacheError(Exception):
    """An error with a message for the user: found, expected, what to do, in one line."""


class StandstillError(HarcacheError):
    """An error that all other work would meet as well, so that none is begun after it."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return a sentence that names the nearest of ``choices``, or the first of them when none is near."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean '{near[0]}'?"
    more = f" and {len(known) - _MOST_NAMED} more" if len(known) > _MOST_NAMED else ""
    return f"Known: {', '.join(known[:_MOST_NAMED])}{more}." if known else ""

"""Bounds on how deep values of strangers are nested, before anything walks them.

A few hundred bytes can describe lists that hold one another a trillion times: printing, hashing or writing
such a value never ends, though it takes no memory.
"""

from typing import Any

__all__ = ["check_nesting"]

_DEEPEST = 100
_MOST_VALUES = 20_000_000  # walked in seconds; the largest pickles of poses have a tenth of it
_CONTAINERS = (dict, list, tuple, set, frozenset)
_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})  # told apart faster than containers


def check_nesting(root: object) -> None:
    """Raise ValueError where containers in ``root`` hold themselves, or too many values when each is walked.

    A container that stands in several places counts in each, but is walked once.
    """
    counts: dict[int, int] = {}  # of values, by container that was walked
    path: list[tuple[Any, list[Any]]] = []  # containers, each in the one before, and what else that holds
    ahead: list[Any] = [root] if isinstance(root, _CONTAINERS) else []
    while True:
        while ahead and id(ahead[-1]) in counts:
            ahead.pop()
        if ahead:
            path.append((ahead.pop(), ahead))
            if len(path) > _DEEPEST:
                raise ValueError(f"its values are nested more than {_DEEPEST} deep, or hold themselves")
            ahead = _containers_in(path[-1][0])
        elif path:
            done, ahead = path.pop()
            count = len(done) + sum(counts[id(inner)] for inner in _containers_in(done))
            if count > _MOST_VALUES:
                raise ValueError(f"it holds more than {_MOST_VALUES:,} values, one in another")
            counts[id(done)] = count
        else:
            return


def _containers_in(container: Any) -> list[Any]:
    found = [inner for inner in container if type(inner) not in _PLAIN]
    if isinstance(container, dict):
        found += [inner for inner in container.values() if type(inner) not in _PLAIN]
    return [inner for inner in found if isinstance(inner, _CONTAINERS)]

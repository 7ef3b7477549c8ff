"""What other programs may call a clip: its id, its video's path without suffix, or its video's name."""

from collections import Counter
from collections.abc import Container, Iterable
from pathlib import PurePosixPath

from harcache.pipeline.clips import Clip

__all__ = ["ambiguous_names", "name_in", "names_of"]


def names_of(clip: Clip, ambiguous: Container[str] = frozenset()) -> list[str]:
    """Return the names that a clip may have, its id first, without others that are ``ambiguous``."""
    path = PurePosixPath(clip.video)
    others = dict.fromkeys((str(path.with_suffix("")), path.stem))
    return [clip.id, *(name for name in others if name != clip.id and name not in ambiguous)]


def ambiguous_names(clips: Iterable[Clip]) -> frozenset[str]:
    """Return the names that may mean several of the clips."""
    counts = Counter(name for clip in clips for name in names_of(clip))
    return frozenset(name for name, count in counts.items() if count > 1)


def name_in(source: Container[str], clip: Clip, ambiguous: Container[str]) -> str | None:
    """Return what ``source`` calls the clip, None where it does not have it."""
    return next((name for name in names_of(clip, ambiguous) if name in source), None)

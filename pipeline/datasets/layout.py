"""What every dataset layout gives: entries before their videos are opened, and why files were left out.

Finding files is apart from reading them, so that a layout is a few pure lines on paths and names.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harcache.pipeline.base.folders import find_files, is_utf8

__all__ = [
    "VIDEO_SUFFIXES",
    "Entry",
    "Scan",
    "distinct",
    "find_videos",
    "scan_names",
]

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv"})


@dataclass(frozen=True, slots=True)
class Entry:
    """A clip as its name or a table tells it; ``end`` None means the whole video.

    ``video`` is relative to the dataset's folder, with ``/``. ``labels`` are (protocol, class number from 0),
    ``splits`` are (protocol, "train", "val" or "test"). ``repair`` says what was mended in its annotation.
    """

    id: str
    video: str
    start: int = 0
    end: int | None = None
    subject: int | None = None
    camera: int | None = None
    setup: int | None = None
    repetition: int | None = None
    labels: tuple[tuple[str, int], ...] = ()
    splits: tuple[tuple[str, str], ...] = ()
    repair: str = ""


@dataclass(frozen=True, slots=True)
class Scan:
    """Entries sorted by id, class names of each protocol, and (path, why) of all that was left out."""

    entries: tuple[Entry, ...]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[tuple[str, str], ...] = ()


def scan_names(
    root: Path, entry_of: Callable[[str], Entry | str], classes: Mapping[str, tuple[str, ...]]
) -> Scan:
    """Return the clips of a dataset whose file names tell everything.

    ``entry_of`` gives the clip of a video's path under ``root``, or why it is left out.
    """
    found = {video: entry_of(video) for video in find_videos(root)}
    entries, doubles = distinct(entry for entry in found.values() if isinstance(entry, Entry))
    left_out = [(video, why) for video, why in found.items() if isinstance(why, str)]
    return Scan(entries, classes, tuple(sorted([*left_out, *doubles])))


def find_videos(root: Path) -> list[str]:
    """Return the videos under ``root`` by their suffix, as `find_files` does."""
    return find_files(root, VIDEO_SUFFIXES)


def distinct(entries: Iterable[Entry]) -> tuple[tuple[Entry, ...], tuple[tuple[str, str], ...]]:
    """Sort by id and keep the first video of each id; the others come back as (path, why).

    So do names that are not UTF-8, since no table could hold them.
    """
    kept: dict[str, Entry] = {}
    left_out = []
    for entry in sorted(entries, key=lambda e: (e.id, e.video)):
        if not is_utf8(entry.video):
            left_out.append((entry.video, "file name is not UTF-8; rename it"))
            continue
        first = kept.setdefault(entry.id, entry)
        if first is not entry:
            left_out.append((entry.video, f"has the id {entry.id} of {first.video}; rename one of them"))
    return tuple(kept.values()), tuple(left_out)

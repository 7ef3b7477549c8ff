"""Clips, and the two tables that name them: ``manifest.csv`` and ``classes.csv``.

Plain CSV, so that a person can read, compare and mend the tables; everything read is checked, since ids
become file names and videos become paths.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.base.garbage import collection_paused
from harcache.pipeline.base.tables import Table, read_table, write_table

__all__ = [
    "Clip",
    "read_classes",
    "read_manifest",
    "write_classes",
    "write_manifest",
]

_COLUMNS = ("id", "video", "start", "end", "frames", "height", "width", "fps", "size", "mtime_ns", "digest")
_OPTIONAL = ("subject", "camera", "setup", "repetition")
_CLASS_COLUMNS = ("protocol", "label", "name")
_SPLITS = ("train", "val", "test")
_BAD_IN_ID = re.compile(r"[/\\\x00-\x1f\x7f]")
_Row = TypeVar("_Row")
_PROTOCOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames ``start`` to ``end`` (one past the last) of a video, with what is known about them.

    ``video`` is relative to the dataset's folder of videos, with ``/``. ``height`` and ``width`` are pixels,
    ``size`` is bytes, ``digest`` the BLAKE2b-128 of the video file. Labels count from 0 in each protocol.
    An id or a path that could leave its folder raises HarcacheError.
    """

    id: str
    video: str
    start: int
    end: int
    height: int
    width: int
    fps: float
    size: int
    mtime_ns: int
    digest: str
    subject: int | None = None
    camera: int | None = None
    setup: int | None = None
    repetition: int | None = None
    labels: tuple[tuple[str, int], ...] = ()
    splits: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _check_id(self.id)
        _check_video(self.video)
        if not 0 <= self.start < self.end:
            raise HarcacheError(
                f"clip '{self.id}' goes from frame {self.start} to {self.end}: expected 0 <= start < end"
            )
        _check_protocols(self)
        # One order, so that a clip equals what the manifest gives back.
        object.__setattr__(self, "labels", tuple(sorted(self.labels)))
        object.__setattr__(self, "splits", tuple(sorted(self.splits)))

    @property
    def frames(self) -> int:
        """Number of source frames."""
        return self.end - self.start

    @property
    def fingerprint(self) -> str:
        """Stands for the clip's pixels: a renamed or touched video keeps it."""
        return fingerprint(self.digest, self.start, self.end)

    def label(self, protocol: str) -> int | None:
        """Return the class number in ``protocol``, or None for a clip without a label."""
        return dict(self.labels).get(protocol)

    def split(self, protocol: str) -> str | None:
        """Return "train", "val" or "test", or None for a clip that is in no split of ``protocol``."""
        return dict(self.splits).get(protocol)


def _check_id(name: str) -> None:
    if not name or name.startswith(".") or _BAD_IN_ID.search(name):
        raise HarcacheError(
            f"clip id {name!r} can't be a file name: expected one without separators, control characters "
            "or a dot in front"
        )


def _check_video(video: str) -> None:
    parts = set(video.split("/"))
    if parts <= {"", "."} or video.startswith("/") or ".." in parts or "\\" in video or "\0" in video:
        raise HarcacheError(
            f"video {video!r} may lie outside the folder of videos: expected a relative path with '/', "
            "without '..'"
        )


def _check_protocols(clip: Clip) -> None:
    for protocol in [name for name, _ in (*clip.labels, *clip.splits)]:
        if not _PROTOCOL.fullmatch(protocol):
            raise HarcacheError(
                f"clip '{clip.id}' has a protocol {protocol!r}: expected letters, digits, '_', '.' and '-'"
            )
    for what, pairs in (("labels", clip.labels), ("splits", clip.splits)):
        names = [name for name, _ in pairs]
        for protocol in names:
            if names.count(protocol) > 1:
                found = ", ".join(str(value) for name, value in pairs if name == protocol)
                raise HarcacheError(
                    f"clip '{clip.id}' has several {what} in {protocol}: expected one of {found}"
                )
    for protocol, label in clip.labels:
        if label < 0:
            raise HarcacheError(
                f"clip '{clip.id}' has label {label} in {protocol}: expected a number from 0 on"
            )
    for protocol, split in clip.splits:
        if split not in _SPLITS:
            raise HarcacheError(
                f"clip '{clip.id}' has split {split!r} in {protocol}: expected {', '.join(_SPLITS)}"
            )


def write_manifest(path: Path | str, clips: Sequence[Clip]) -> bool:
    """Write ``clips`` as CSV, atomically and only when that changes the file; return whether it did."""
    labels = sorted({protocol for clip in clips for protocol, _ in clip.labels})
    splits = sorted({protocol for clip in clips for protocol, _ in clip.splits})
    header = (*_COLUMNS, *_OPTIONAL, *(f"label_{p}" for p in labels), *(f"split_{p}" for p in splits))
    return write_table(Path(path), header, (_to_row(clip, labels, splits) for clip in clips))


def _to_row(clip: Clip, labels: Sequence[str], splits: Sequence[str]) -> list[Any]:
    fixed = [getattr(clip, name) for name in (*_COLUMNS, *_OPTIONAL)]
    return [*fixed, *map(clip.label, labels), *map(clip.split, splits)]


@collection_paused()
def read_manifest(path: Path | str) -> list[Clip]:
    """Read the clips in the order of the file.

    Raises HarcacheError, with the file and the line, for a missing file or column, a value of the wrong
    type, an unsafe id or path, and an id that comes twice.
    """
    found = _read_table(Path(path), _clip_from_row, _COLUMNS)
    lines: dict[str, int] = {}
    for line, clip in zip(found.lines, found.rows, strict=True):
        if clip.id in lines:
            raise HarcacheError(
                f"{path}, line {line}: clip id '{clip.id}' is already on line {lines[clip.id]}; "
                "expected every id once"
            )
        lines[clip.id] = line
    return found.rows


def _clip_from_row(row: Mapping[str, str]) -> Clip:
    clip = Clip(
        id=row["id"],
        video=row["video"],
        fps=_number(row, "fps", float),
        digest=row["digest"],
        **{name: _number(row, name, int) for name in ("start", "end", "height", "width", "size", "mtime_ns")},
        **{name: _number(row, name, int) for name in _OPTIONAL if row.get(name)},
        labels=tuple((name[6:], _number(row, name, int)) for name in _filled(row, "label_")),
        splits=tuple((name[6:], row[name]) for name in _filled(row, "split_")),
    )
    if _number(row, "frames", int) != clip.frames:
        raise HarcacheError(f"frames is {row['frames']}: expected end - start, {clip.frames}")
    return clip


def _filled(row: Mapping[str, str], prefix: str) -> list[str]:
    return [name for name in _starting_with(prefix, tuple(row)) if row[name]]


@lru_cache(maxsize=8)
def _starting_with(prefix: str, columns: tuple[str, ...]) -> list[str]:
    # The same for every row of a table.
    return [name for name in columns if name.startswith(prefix)]


def _number(row: Mapping[str, str], column: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(row[column])
    except ValueError:
        raise HarcacheError(f"{column} is {row[column]!r}: expected a number") from None


def write_classes(path: Path | str, classes: Mapping[str, Sequence[str]]) -> bool:
    """Write the class names of each protocol, in the order of their numbers; return whether it changed."""
    rows = ((p, label, name) for p in sorted(classes) for label, name in enumerate(classes[p]))
    return write_table(Path(path), _CLASS_COLUMNS, rows)


def read_classes(path: Path | str) -> dict[str, list[str]]:
    """Read {protocol: names}, where the class of number i is ``names[i]``; a gap raises HarcacheError."""
    classes: dict[str, list[str]] = {}
    found = _read_table(Path(path), _class_from_row, _CLASS_COLUMNS)
    for line, (protocol, label, name) in zip(found.lines, found.rows, strict=True):
        names = classes.setdefault(protocol, [])
        if label != len(names):
            raise HarcacheError(
                f"{path}, line {line}: label {label} of {protocol}: expected {len(names)}, "
                "since labels count up from 0"
            )
        names.append(name)
    return classes


def _class_from_row(row: Mapping[str, str]) -> tuple[str, int, str]:
    return row["protocol"], _number(row, "label", int), row["name"]


def _read_table(
    path: Path, parse: Callable[[Mapping[str, str]], _Row], columns: Sequence[str]
) -> Table[_Row]:
    if not path.is_file():
        raise HarcacheError(f"{path} is missing; run the index stage, which writes it")
    return read_table(path, parse, columns, remedy="; run the index stage again")

"""Any videos: a folder a class, or a CSV table of ``path,label[,split,subject]``; one protocol, "default".

Without a column ``split`` the test clips are chosen by a hash of the seed, never twice the same person on
both sides where subjects are known. Clips without a label are indexed too, in no split.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipeline.clips import fingerprint
from pipeline.datasets.layout import Entry, Scan, distinct, find_videos
from pipeline.errors import HarcacheError, did_you_mean
from pipeline.params import IndexParams

__all__ = ["PROTOCOL", "scan_folder"]

PROTOCOL = "default"
_SPLITS = ("train", "val", "test")
_UNSAFE = re.compile(r"[^\w.+=@-]+")


def scan_folder(root: Path, params: IndexParams) -> Scan:
    """Return the clips of class folders, or of ``params.table``, a path relative to ``root``.

    A class folder is the first folder on a video's path; its name is the class. Class numbers follow the
    names in order, as numbers where all names are whole numbers. In a table an empty label or split means
    none; other columns are ignored. A wrong table raises HarcacheError with the line.
    """
    rows = _read_table(root, params.table) if params.table else _class_folders(root)
    names = _class_names(rows)
    numbers = {name: number for number, name in enumerate(names)}
    ids = _ids_of([row["path"] for row in rows])
    entries, doubles = distinct(_entry(ids[row["path"]], row, numbers) for row in rows)
    if not any("split" in row for row in rows):
        entries = _with_splits(entries, params)
    return Scan(entries, {PROTOCOL: tuple(names)} if names else {}, doubles)


def _class_folders(root: Path) -> list[dict[str, str]]:
    def row(video: str) -> dict[str, str]:
        folders = PurePosixPath(video).parts[:-1]
        return {"path": video, "label": folders[0] if folders else ""}

    return [row(video) for video in find_videos(root)]


def _read_table(root: Path, table: str) -> list[dict[str, str]]:
    path = root / table
    if not path.is_file():
        raise HarcacheError(f"{path} is missing: expected a CSV table there, or no 'table' in params.yaml")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True, skipinitialspace=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        if "path" not in columns:
            raise HarcacheError(
                f"{path} has no column 'path' in its first line: expected path,label[,split,subject]. "
                f"Columns found: {', '.join(columns) or 'none'}"
            )
        reader.fieldnames = columns
        return _checked_rows(path, reader)


def _checked_rows(path: Path, reader: csv.DictReader) -> list[dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    try:
        for raw in reader:
            row = _checked_row(raw)
            if row["path"] in rows:
                raise HarcacheError(f"{row['path']} is listed twice: expected every video once")
            rows[row["path"]] = row
    except (HarcacheError, csv.Error, UnicodeDecodeError) as error:
        raise HarcacheError(f"{path}, line {reader.line_num}: {error}") from error
    return list(rows.values())


def _checked_row(raw: Mapping[str, str | None]) -> dict[str, str]:
    if None in raw or None in raw.values():
        raise HarcacheError("wrong number of columns: expected as many as in the first line")
    row = {name: (text or "").strip() for name, text in raw.items()}
    video = PurePosixPath(row["path"])
    if not video.name or video.is_absolute() or ".." in video.parts:
        raise HarcacheError(f"path '{row['path']}': expected a path under the folder of videos, without '..'")
    if row.get("split") and row["split"] not in _SPLITS:
        raise HarcacheError(f"split '{row['split']}' is unknown. {did_you_mean(row['split'], _SPLITS)}")
    if row.get("subject") and not row["subject"].isdecimal():
        raise HarcacheError(f"subject '{row['subject']}': expected a whole number")
    return row | {"path": video.as_posix()}


def _class_names(rows: Iterable[Mapping[str, str]]) -> list[str]:
    names = sorted({row["label"] for row in rows if row.get("label")})
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def _entry(name: str, row: Mapping[str, str], numbers: Mapping[str, int]) -> Entry:
    label, split, subject = (row.get(name) for name in ("label", "split", "subject"))
    return Entry(
        id=name,
        video=row["path"],
        subject=int(subject) if subject else None,
        labels=((PROTOCOL, numbers[label]),) if label else (),
        splits=((PROTOCOL, split),) if label and split else (),
    )


def _ids_of(videos: Sequence[str]) -> dict[str, str]:
    """Name videos by their path without suffix; those that differ in nothing else keep the suffix."""
    stems = {video: PurePosixPath(video).with_suffix("").as_posix() for video in videos}
    times = Counter(stems.values())
    return {video: _safe(stem if times[stem] == 1 else video) for video, stem in stems.items()}


def _safe(path: str) -> str:
    return _UNSAFE.sub("_", path.replace("/", "__")).lstrip(".") or "_"


def _with_splits(entries: Iterable[Entry], params: IndexParams) -> tuple[Entry, ...]:
    entries = tuple(entries)
    test = _test_groups([entry for entry in entries if entry.labels], params)

    def split(entry: Entry) -> Entry:
        side = "test" if _group(entry) in test else "train"
        return replace(entry, splits=((PROTOCOL, side),)) if entry.labels else entry

    return tuple(split(entry) for entry in entries)


def _test_groups(labelled: Iterable[Entry], params: IndexParams) -> set[str]:
    """Choose among the subjects where they are known, and among the other clips in each class."""
    groups: dict[object, set[str]] = defaultdict(set)
    for entry in labelled:
        groups["subjects" if entry.subject is not None else entry.labels].add(_group(entry))
    return {name for names in groups.values() for name in _share(names, params)}


def _share(names: set[str], params: IndexParams) -> list[str]:
    order = sorted(names, key=lambda name: fingerprint(params.seed, name))
    count = round(params.test_ratio * len(order))
    if 0 < params.test_ratio < 1 and len(order) > 1:
        count = min(max(count, 1), len(order) - 1)
    return order[:count]


def _group(entry: Entry) -> str:
    return f"clip {entry.id}" if entry.subject is None else f"subject {entry.subject}"

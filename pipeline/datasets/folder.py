"""Any videos: a folder a class, or a CSV table of ``path,label`` and more; one protocol, "default".

Who is tested comes from the table's column ``split``, from named subjects, or from a hash of the seed, which
never parts a group, else a subject, else a video. Clips without a label are indexed too, in no split.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from harcache.pipeline.base.errors import HarcacheError, did_you_mean
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.base.folders import is_utf8
from harcache.pipeline.base.tables import read_table
from harcache.pipeline.datasets.layout import Entry, Scan, distinct, find_videos
from harcache.pipeline.params import FolderIndexParams

__all__ = ["PROTOCOL", "scan"]

PROTOCOL = "default"
_SPLITS = ("train", "val", "test")
_SPLIT_FOLDERS = {name: name for name in _SPLITS} | {
    "training": "train", "valid": "val", "validation": "val", "testing": "test"
}  # fmt: skip
_COLUMNS = ("path", "label", "split", "subject", "group", "start", "end")
_WHOLE_NUMBERS = ("subject", "start", "end")
_UNSAFE = re.compile(r"[^\w.+=@-]+")


def scan(root: Path, params: FolderIndexParams) -> Scan:
    """Return the clips of class folders, or of ``params.table``, a path relative to ``root``.

    A class folder is the first folder on a video's path; its name is the class. Where all first folders are
    called as splits are, they are splits, and the second is the class. Class numbers follow the
    names in order, as numbers where all names are whole numbers. In a table an empty value means none, other
    columns are ignored, and ``start`` and ``end`` (one past the last) are frames from 0. A wrong table raises
    HarcacheError with the line; so do parameters that don't fit the videos.
    """
    rows = _read_table(root, params.table) if params.table else _class_folders(root)
    names = _class_names(rows)
    numbers = {name: number for number, name in enumerate(names)}
    stems = _ids_of({row["path"] for row in rows})
    pattern = _compiled(params.group_pattern)
    groups = {_entry(stems[r["path"]], r, numbers): _group(stems[r["path"]], r, pattern) for r in rows}
    entries, doubles = distinct(groups)
    subjects = (*params.val_subjects, *params.test_subjects)
    if not any("split" in row for row in rows):
        labelled = [entry for entry in entries if entry.labels]
        sides = _by_subject(labelled, params) if subjects else _by_ratio(labelled, groups, params)
        entries = tuple(replace(e, splits=((PROTOCOL, sides[e]),)) if e in sides else e for e in entries)
    elif subjects:
        where = (
            f"{root / params.table} has a column 'split'" if params.table else f"{root} has folders of splits"
        )
        raise HarcacheError(f"{where}, and params.yaml has subjects of the splits: keep one of them")
    return Scan(entries, {PROTOCOL: tuple(names)} if names else {}, doubles)


def _class_folders(root: Path) -> list[dict[str, str]]:
    # A path that is not UTF-8 is left out later, and its folder is no class.
    folders = {v: PurePosixPath(v).parts[:-1] if is_utf8(v) else () for v in find_videos(root)}
    first = {parts[0].lower() for parts in folders.values() if parts}
    if first and first <= _SPLIT_FOLDERS.keys():
        return [_row_of_split(root, video, parts) for video, parts in folders.items()]
    return [{"path": video, "label": parts[0] if parts else ""} for video, parts in folders.items()]


def _row_of_split(root: Path, video: str, folders: Sequence[str]) -> dict[str, str]:
    if len(folders) == 1:
        raise HarcacheError(
            f"{root / folders[0]} is called as a split is, and {PurePosixPath(video).name} lies in it: "
            "expected folders of classes there, or a table of path,label,split, or another name"
        )
    split, label = (_SPLIT_FOLDERS[folders[0].lower()], folders[1]) if folders else ("", "")
    return {"path": video, "label": label, "split": split}


def _read_table(root: Path, table: str) -> list[dict[str, str]]:
    path = root / table
    if not path.is_file():
        raise HarcacheError(f"{path} is missing: expected a CSV table there, or no 'table' in params.yaml")
    seen: set[tuple[str, str, str]] = set()

    def checked(raw: Mapping[str, str]) -> dict[str, str]:
        row = _checked_row(raw)
        place = row["path"], row.get("start", ""), row.get("end", "")
        if place in seen:
            raise HarcacheError(f"{row['path']} is listed twice: expected every clip once")
        seen.add(place)
        return row

    return read_table(path, checked, ["path"], known=_COLUMNS, strip=True).rows


def _checked_row(row: Mapping[str, str]) -> dict[str, str]:
    video = PurePosixPath(row["path"])
    if not video.name or video.is_absolute() or ".." in video.parts or "\0" in row["path"]:
        raise HarcacheError(f"path {row['path']!r}: expected a path under the folder of videos, without '..'")
    if row.get("split") and row["split"] not in _SPLITS:
        raise HarcacheError(f"split '{row['split']}' is unknown. {did_you_mean(row['split'], _SPLITS)}")
    for name in _WHOLE_NUMBERS:
        if (text := row.get(name)) and not (text.isascii() and text.isdecimal()):
            raise HarcacheError(f"{name} '{text}': expected a whole number")
    start, end = _range(row)
    if end is not None and start >= end:
        raise HarcacheError(f"start {start} and end {end}: expected start < end, which is one past the last")
    return {**row, "path": video.as_posix()}


def _range(row: Mapping[str, str]) -> tuple[int, int | None]:
    return int(row.get("start") or 0), int(row["end"]) if row.get("end") else None


def _class_names(rows: Iterable[Mapping[str, str]]) -> list[str]:
    names = sorted({row["label"] for row in rows if row.get("label")})
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def _entry(stem: str, row: Mapping[str, str], numbers: Mapping[str, int]) -> Entry:
    label, split, subject = (row.get(name) for name in ("label", "split", "subject"))
    start, end = _range(row)
    whole = start == 0 and end is None
    return Entry(
        id=stem if whole else f"{stem}_F{start:05}-{'end' if end is None else f'{end:05}'}",
        video=row["path"],
        start=start,
        end=end,
        subject=int(subject) if subject else None,
        labels=((PROTOCOL, numbers[label]),) if label else (),
        splits=((PROTOCOL, split),) if label and split else (),
    )


def _ids_of(videos: Iterable[str]) -> dict[str, str]:
    """Name videos by their path without suffix; those that differ in nothing else keep the suffix."""
    stems = {video: PurePosixPath(video).with_suffix("").as_posix() for video in videos}
    times = Counter(stems.values())
    return {video: _safe(stem if times[stem] == 1 else video) for video, stem in stems.items()}


def _safe(path: str) -> str:
    return _UNSAFE.sub("_", path.replace("/", "__")).lstrip(".") or "_"


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise HarcacheError(
            f"group_pattern '{pattern}' is no regular expression ({error}): expected one such as '_g[0-9]+_'"
        ) from error


def _group(stem: str, row: Mapping[str, str], pattern: re.Pattern[str] | None) -> str:
    """Name what a clip must not be parted from; a name with "clip" in front is a video by itself."""
    match = pattern.search(row["path"]) if pattern else None
    if name := row.get("group") or (match and match[0]):
        return f"group {name}"
    return f"subject {int(row['subject'])}" if row.get("subject") else f"clip {stem}"


def _by_subject(labelled: Sequence[Entry], params: FolderIndexParams) -> dict[Entry, str]:
    test, val = set(params.test_subjects), set(params.val_subjects)
    known = {entry.subject for entry in labelled}
    problem = ""
    if None in known:
        problem = "some clips with a label have no subject"
    elif absent := sorted((test | val) - known):
        problem = f"no clip has the subjects {absent}"
    elif both := sorted(test & val):
        problem = f"subjects {both} are in both"
    if problem:
        raise HarcacheError(
            f"test_subjects and val_subjects: {problem}; expected a column 'subject' that is filled, and "
            "each subject on one side"
        )
    return {e: "test" if e.subject in test else "val" if e.subject in val else "train" for e in labelled}


def _by_ratio(
    labelled: Sequence[Entry], groups: Mapping[Entry, str], params: FolderIndexParams
) -> dict[Entry, str]:
    """Choose among groups and subjects together, and among the other videos in each class."""
    if params.test_ratio + params.val_ratio > 1:
        raise HarcacheError(
            f"test_ratio {params.test_ratio} and val_ratio {params.val_ratio}: expected a sum of 1 at most"
        )
    pools: dict[object, set[str]] = defaultdict(set)
    for entry in labelled:
        pools[entry.labels if groups[entry].startswith("clip ") else "together"].add(groups[entry])
    sides: dict[str, str] = {}
    for pool in pools.values():
        # A video with clips of several classes is in several pools, and the first one decides.
        sides = _share(pool, params) | sides
    return {entry: sides[groups[entry]] for entry in labelled}


def _share(names: set[str], params: FolderIndexParams) -> dict[str, str]:
    order = sorted(names, key=lambda name: fingerprint(params.seed, name))
    test = _count(params.test_ratio, len(order), len(order))
    val = _count(params.val_ratio, len(order), len(order) - test)
    sides = ["test"] * test + ["val"] * val + ["train"] * (len(order) - test - val)
    return dict(zip(order, sides, strict=True))


def _count(ratio: float, total: int, free: int) -> int:
    """Return about ``ratio`` of ``total``, at least one; one of the ``free`` ones is kept for training."""
    if 0 < ratio < 1:
        return min(max(round(ratio * total), 1), max(free - 1, 0))
    return round(ratio * total)

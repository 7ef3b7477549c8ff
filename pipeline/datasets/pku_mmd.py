"""PKU-MMD, phase I: long videos, each with a text file of its actions; a clip is (video, start, end).

Nothing is cut out into files. Rows that can be mended are, and say so; others stop the scan, since a lost
instance would change the benchmark without a word.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.folders import find_files
from harcache.pipeline.datasets.layout import Entry, Scan, distinct, find_videos
from harcache.pipeline.params import IndexParams

__all__ = ["CLASSES", "scan"]

_STEM = re.compile(r"\d{4}-([LMR])", re.ASCII)
_ROW = re.compile(r"(\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*,\s*\d{1,9}", re.ASCII)
_CAMERAS = {"L": 1, "M": 2, "R": 3}
# What the archives of the other sensors unpack to, with the same file names.
_OTHER_SENSORS = re.compile(r"(^|[^a-z])(depth|ir|infrared)([^a-z]|$)", re.IGNORECASE)
_SPLIT_FILES = {
    "xsub": re.compile(r"cross[-_]subject\.txt", re.IGNORECASE),
    "xview": re.compile(r"cross[-_]view\.txt", re.IGNORECASE),
}
# "Validataion videos" is how the files spell it.
_SPLIT_HEADER = re.compile(r"(train|valid|test)\w* videos:(.*)", re.IGNORECASE)

_CLASS_NAMES = """
bow, brush hair, brush teeth, check time, cheer up, clapping, cross hands in front, drink water, drop,
eat meal, falling down, giving object, hand waving, shaking hands, hopping, hugging, jump up, kicking,
kicking something, phone call, pat on back, pick up, play with phone, point finger, point to something,
punch or slap, pushing, put on a hat, put into pocket, reading, rub two hands, salute, sit down, stand up,
take off a hat, take off glasses, take off jacket, take out of pocket, taking a selfie, tear up paper, throw,
back pain, chest pain, headache, neck pain, type on a keyboard, fan self, put on jacket, put on glasses,
wipe face, writing
"""
# Actions 1 to 51, so a label is an action's number less one.
CLASSES = tuple(name.strip() for name in _CLASS_NAMES.split(","))


def scan(root: Path, params: IndexParams) -> Scan:
    """Return an entry for each row of the videos' label files.

    The protocols are those whose split file lies under ``root``: "xsub", "xview"; what the files call
    validation is the test. Raises HarcacheError, with file and line, for a row or a list that can't be read.
    """
    texts = find_files(root, (".txt", ".label"))
    sides = _read_splits(root, texts)
    labels = _label_files(texts)
    videos, left_out = _choose_videos(root, labels)
    entries = []
    for stem, video in videos.items():
        splits = tuple((protocol, side[stem]) for protocol, side in sides.items() if stem in side)
        found, repeated = _read_labels(root, labels[stem])
        if not found:
            left_out.append((video, f"its label file {labels[stem]} is empty"))
        entries += [_entry(video, action, tuple(sides), splits) for action in found]
        left_out += repeated
    left_out += [(labels[stem], "has no video") for stem in labels.keys() - videos.keys()]
    kept, unreadable = distinct(entries)
    return Scan(kept, dict.fromkeys(sides, CLASSES), tuple(sorted([*left_out, *unreadable])))


@dataclass(frozen=True, slots=True)
class _Action:
    """A row of a label file: the number of the action from 1, its first frame and its last, from 0."""

    number: int
    first: int
    last: int
    repair: str


def _entry(
    video: str, action: _Action, protocols: Iterable[str], splits: tuple[tuple[str, str], ...]
) -> Entry:
    stem = PurePosixPath(video).stem
    return Entry(
        id=f"{stem}_F{action.first:05}_A{action.number:02}",
        video=video,
        start=action.first,
        end=action.last + 1,
        camera=_CAMERAS[stem[-1]],
        labels=tuple((protocol, action.number - 1) for protocol in protocols),
        splits=splits,
        repair=action.repair,
    )


def _choose_videos(root: Path, labels: Mapping[str, str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the RGB videos that have labels, by stem, and (path, why) of the others."""
    videos: dict[str, str] = {}
    left_out = []
    for video in find_videos(root):
        path = PurePosixPath(video)
        if not _STEM.fullmatch(path.stem):
            left_out.append((video, "name is not like 0002-L.avi"))
        elif _OTHER_SENSORS.search(str(path.parent)):
            left_out.append((video, "lies in a folder of depth or infrared videos"))
        elif path.stem not in labels:
            left_out.append((video, f"has no label file {path.stem}.txt"))
        elif path.stem in videos:
            left_out.append((video, f"has the name of {videos[path.stem]}; remove one of them"))
        else:
            videos[path.stem] = video
    return videos, left_out


def _label_files(texts: Iterable[str]) -> dict[str, str]:
    """Return the label file of each stem; a skeleton file of that name in another folder doesn't count."""
    found: dict[str, list[str]] = {}
    for text in texts:
        if _STEM.fullmatch(stem := PurePosixPath(text).stem):
            found.setdefault(stem, []).append(text)
    return {stem: _only_label_file(files) for stem, files in found.items()}


def _only_label_file(files: Sequence[str]) -> str:
    named = [file for file in files if "label" in file.lower()]
    chosen = named or files
    if len(chosen) > 1:
        raise HarcacheError(
            f"{chosen[0]} and {chosen[1]} may both be labels of one video: keep one of them, in a folder "
            "with 'label' in its name"
        )
    return chosen[0]


def _read_labels(root: Path, file: str) -> tuple[list[_Action], list[tuple[str, str]]]:
    """Return the actions of a label file, and (place, why) of the rows that repeat an earlier one."""
    actions: dict[tuple[int, int], tuple[int, _Action]] = {}
    repeated = []
    for line, text in _lines(root / file):
        action = _parse_row(root / file, line, text)
        first_line, _ = actions.setdefault((action.number, action.first), (line, action))
        if first_line != line:
            repeated.append(
                (f"{file}, line {line}", f"has the action and the first frame of line {first_line}")
            )
    return [action for _, action in actions.values()], repeated


def _parse_row(path: Path, line: int, text: str) -> _Action:
    match = _ROW.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= len(CLASSES):
        raise HarcacheError(
            f"{path}, line {line}: {_shortened(text)!r}: expected label,start,end,confidence in whole "
            f"numbers, with a label from 1 to {len(CLASSES)} and frames from 0; mend the row or remove it"
        )
    number, first, last = map(int, match.groups())
    if first <= last:
        return _Action(number, first, last, "")
    return _Action(number, last, first, f"start {first} and end {last} were swapped")


def _read_splits(root: Path, texts: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return {protocol: {stem: "train" or "test"}} of the split files that are there."""
    found: dict[str, str] = {}
    for text in texts:
        name = PurePosixPath(text).name
        for protocol in (protocol for protocol, pattern in _SPLIT_FILES.items() if pattern.fullmatch(name)):
            if protocol in found:
                raise HarcacheError(
                    f"{found[protocol]} and {text} are both split files of {protocol}: keep one of them"
                )
            found[protocol] = text
    if not found:
        raise HarcacheError(
            f"{root} has no split file: lay PKU-MMD's cross-subject.txt or cross-view.txt there, or both"
        )
    return {protocol: _read_split(root / found[protocol]) for protocol in sorted(found)}


def _read_split(path: Path) -> dict[str, str]:
    sides: dict[str, str] = {}
    side = ""
    for line, text in _lines(path):
        header = _SPLIT_HEADER.fullmatch(text)
        if header:
            side = "train" if header[1].lower() == "train" else "test"
        for stem in filter(None, map(str.strip, (header[2] if header else text).split(","))):
            if not side or not _STEM.fullmatch(stem):
                raise HarcacheError(
                    f"{path}, line {line}: {_shortened(stem)!r}: expected 'Training videos:' or 'Validation "
                    "videos:', each before a list of names like 0002-L, with commas"
                )
            if sides.setdefault(stem, side) != side:
                raise HarcacheError(f"{path}, line {line}: {stem} is in both lists: remove it from one")
    return sides


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Give the lines that are not empty, without white space around them, with their numbers from 1."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise HarcacheError(f"{path}, line {line}: is no text ({error.reason}): mend the file") from error
    except OSError as error:
        raise HarcacheError(f"{path} can't be read ({error.strerror}): check its rights") from error
    return ((number, text.strip()) for number, text in enumerate(lines, 1) if text.strip())


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"

"""Boxes brought along from another program, instead of a detector's: one row a box, checked before it counts.

A CSV file has the columns ``clip,frame,x1,y1,x2,y2,score``; a JSON file is a list of objects with these keys.
"""

from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from harcache.cache.annotations import write_detections
from harcache.pipeline.base.errors import HarcacheError, did_you_mean
from harcache.pipeline.base.files import file_digest
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.base.progress import notice
from harcache.pipeline.base.tables import parse_json, read_rows
from harcache.pipeline.clips import Clip, read_manifest
from harcache.pipeline.params import GivenBoxesParams
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.outcomes import Counts
from harcache.pipeline.work.plan import Unit, Wanted
from harcache.stages.persons.names import ambiguous_names, name_in
from harcache.stages.shared.rates import Timer
from harcache.stages.shared.units import Parts, all_outcomes, build_parts, build_table_part, finish_stage
from harcache.stages.shared.workspace import Workspace

__all__ = ["Context", "process", "read_boxes", "run"]

_NUMBERS = ("frame", "x1", "y1", "x2", "y2", "score")
# So that text takes some megabytes, however long the file is.
_ROWS_AT_ONCE, _TEXT_AT_ONCE = 50_000, 1_000_000
_LONGEST_LINE = 256  # characters, of a file that NumPy reads


@dataclass(frozen=True)
class Context:
    """What a unit needs beside its clips.

    ``token`` stands for the content of the file of boxes, ``ambiguous`` are names that several clips have.
    """

    folder: Path
    source: Path
    token: str
    ambiguous: frozenset[str]


def run(params: GivenBoxesParams, workspace: Workspace, engine: Engine) -> Counts:
    """Give every clip its boxes; a clip without rows has nobody in it."""
    clips = read_manifest(workspace.manifest)
    source = Path(params.source)
    given = read_boxes(source)
    ids, ambiguous = {clip.id for clip in clips}, ambiguous_names(clips)
    known = {name_in(given, clip, ambiguous) for clip in clips}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise HarcacheError(
            f"{source} has boxes of {len(unknown)} clips that the manifest lacks, first '{unknown[0]}'; "
            f"use the ids of {workspace.manifest}. {did_you_mean(unknown[0], ids)}"
        )
    rows = {clip.id: _rows(given, clip, ambiguous) for clip in clips}
    empty = [id for id, found in rows.items() if not len(found)]
    if empty:
        notice(
            f"detect: {source} has no boxes of {len(empty)} of {len(clips)} clips, first '{empty[0]}': "
            "nobody is seen in them"
        )
    wanted = [
        Wanted(
            clip,
            fingerprint("detect", "boxes", clip.frames, clip.height, clip.width, rows[clip.id].tolist()),
        )
        for clip in clips
    ]
    context = Context(workspace.detections, source, file_digest(source), ambiguous)
    parts = Parts("detect", workspace.detections, workspace.detections, wanted)
    records = build_parts(parts, process, context, engine, workspace.retry_failed)
    return finish_stage("detect", workspace, all_outcomes(records))


def process(unit: Unit, context: Context) -> Report:
    """Make one part: the boxes of its clips."""
    given = _read_once(context.source, context.token)

    def work(clip: Clip) -> list[np.ndarray]:
        return _by_frame(_rows(given, clip, context.ambiguous), clip)

    return build_table_part(context.folder, unit, work, write_detections, Timer())


def read_boxes(path: Path) -> dict[str, np.ndarray]:
    """Read a file of boxes: clip id to (n, 6) float64, frame (from 0) x1 y1 x2 y2 (pixels) score.

    Raises HarcacheError, with the first wrong row, for a file that is missing, no table or without a column,
    for what is no number, negative or empty, and for frames of a clip that are not in order.
    """
    plain = None if path.suffix == ".json" else _read_plain(path)
    return _read_carefully(path) if plain is None else plain


def _read_plain(path: Path) -> dict[str, np.ndarray] | None:
    """Read a CSV file in which all is as it should be, by NumPy; None where `_read_carefully` must look."""
    clips, boxes = _Numbered(), [np.empty((0, 6))]
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline(_LONGEST_LINE).rstrip("\r\n").split(",")
            if len({*header}) < len(header) or not {"clip", *_NUMBERS} <= {*header}:
                return None
            for text in _whole_lines(file):
                names, values = _parse_plain(text, header)
                clips.add(names)
                boxes.append(values)
    except (OSError, ValueError):
        return None
    values = np.concatenate(boxes)
    if "" in clips.numbers or not all(good.all() for good, _ in _conditions(values)):
        return None
    try:
        return _by_clip(path, clips, values)
    except HarcacheError:
        return None


def _whole_lines(file: TextIO) -> Iterator[str]:
    """Give the text of a file in pieces that end with a line."""
    rest = ""
    while text := file.read(_TEXT_AT_ONCE):
        end = text.rfind("\n") + 1
        if end:
            yield rest + text[:end]
        rest = text[end:] if end else rest + text
        if len(rest) > _LONGEST_LINE:
            raise ValueError("a line is too long")
    if rest:
        yield rest


def _parse_plain(text: str, header: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the clips' names and (rows, 6) float64; ValueError where any line is not as expected."""
    text = text.replace("\r\n", "\n")
    lines = text.split("\n")
    longest = max(map(len, lines))
    if '"' in text or "\r" in text or longest > _LONGEST_LINE:
        raise ValueError("the text is not plain")
    kinds = [(name, "f8" if name in _NUMBERS else f"U{longest}") for name in header]
    table = np.loadtxt(lines, kinds, delimiter=",", comments=None, ndmin=1)
    return table["clip"].tolist(), np.stack([table[name] for name in _NUMBERS], axis=1)


class _Numbered:
    """The clip of each row, by a number; ``numbers``: of each clip, in the order in which they come."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._rows = [np.empty(0, np.int64)]

    def add(self, names: Iterable[object]) -> None:
        found = [self.numbers.setdefault(str(name), len(self.numbers)) for name in names]
        self._rows.append(np.array(found, np.int64))

    def rows(self) -> np.ndarray:
        return np.concatenate(self._rows)


def _read_carefully(path: Path) -> dict[str, np.ndarray]:
    clips, boxes = _Numbered(), [np.empty((0, 6))]
    rows = 0
    for some in _read_table(path):
        values = _as_numbers(some)
        _check_values(path, rows, some, values)
        clips.add(row[0] for row in some)
        boxes.append(values)
        rows += len(some)
    return _by_clip(path, clips, np.concatenate(boxes))


def _read_table(path: Path) -> Iterator[list[tuple[Any, ...]]]:
    """Give the rows of the file, many at a time, with a clip and `_NUMBERS` as they stand there."""
    try:
        yield from _read_json(path) if path.suffix == ".json" else _read_csv(path)
    except OSError as error:
        raise HarcacheError(
            f"{path} can't be read ({error.strerror}); detect.source in params.yaml names a file of boxes"
        ) from error
    except ValueError as error:
        raise HarcacheError(
            f"{path} is no table of boxes ({' '.join(str(error).split())}); expected CSV, or a JSON list of "
            f"objects, with clip,{','.join(_NUMBERS)}"
        ) from error


def _read_csv(path: Path) -> Iterator[list[tuple[str, ...]]]:
    lines = _lines_of(path)
    header = next(lines, None)
    if header is None:
        raise ValueError("it is empty")
    _require_columns(path, header[1])
    pick = itemgetter(*(header[1].index(name) for name in ("clip", *_NUMBERS)))
    while some := list(islice(lines, _ROWS_AT_ONCE)):
        for line, fields in some:
            if len(fields) != len(header[1]):
                raise ValueError(f"line {line} has {len(fields)} columns, the first line {len(header[1])}")
        yield [pick(fields) for _, fields in some]


def _lines_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        yield from read_rows(path)
    except HarcacheError as error:
        raise ValueError(str(error).removeprefix(f"{path}, ")) from error


def _read_json(path: Path) -> Iterator[list[tuple[Any, ...]]]:
    objects = parse_json(path.read_bytes())
    if not isinstance(objects, list) or not all(isinstance(one, dict) for one in objects):
        raise ValueError("it is no list of objects")
    _require_columns(path, {name for one in objects for name in one})
    for start in range(0, len(objects), _ROWS_AT_ONCE):
        some = objects[start : start + _ROWS_AT_ONCE]
        yield [tuple(one.get(name) for name in ("clip", *_NUMBERS)) for one in some]


def _require_columns(path: Path, columns: Collection[str]) -> None:
    lacking = [name for name in ("clip", *_NUMBERS) if name not in columns]
    if lacking:
        raise HarcacheError(f"{path} has no column '{lacking[0]}'; expected clip,{','.join(_NUMBERS)}")


def _as_numbers(rows: Sequence[tuple[Any, ...]]) -> np.ndarray:
    """(rows, 6) float64; NaN for what is no number."""
    values = np.empty((len(rows), len(_NUMBERS)))
    for place, column in enumerate(list(zip(*rows, strict=True))[1:]):
        try:
            # Python alone takes 1_0 for a number.
            readable = "_" not in "".join(column)
            values[:, place] = list(map(float if readable else _number_or_nan, column))
        except (ValueError, TypeError, OverflowError):
            values[:, place] = list(map(_number_or_nan, column))
    return values


def _number_or_nan(value: Any) -> float:
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return np.nan
    try:
        return float(value)
    except (ValueError, TypeError, OverflowError):
        return np.nan


def _check_values(path: Path, before: int, rows: Sequence[tuple[Any, ...]], values: np.ndarray) -> None:
    """Check what can be told row by row; ``before``: rows of the file that come before these."""
    named = np.array([isinstance(row[0], str | int) and row[0] != "" for row in rows])
    for good, problem in ((named, "no clip id"), *_conditions(values)):
        if not good.all():
            row = int(np.argmin(good))
            raise _wrong(path, before + row, rows[row], problem)


def _conditions(values: np.ndarray) -> tuple[tuple[np.ndarray, str], ...]:
    """What each row must fulfil, (rows,) bool, and what is wrong where it does not."""
    frame, x1, y1, x2, y2, score = values.T
    return (
        (np.isfinite(values).all(axis=1), "a value that is no number"),
        ((frame >= 0) & (frame % 1 == 0), "a frame that is no whole number from 0 on"),
        ((x1 >= 0) & (y1 >= 0), "a negative coordinate"),
        ((x1 < x2) & (y1 < y2), "an empty box (expected x1 < x2 and y1 < y2)"),
        ((score >= 0) & (score <= 1), "a score outside 0 to 1"),
    )


def _by_clip(path: Path, clips: _Numbered, boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Gather the rows of each clip, in the file's order, and check that their frames are in order too."""
    names, numbers = list(clips.numbers), clips.rows()
    order = np.argsort(numbers, kind="stable")
    numbers, boxes = numbers[order], boxes[order]
    back = (np.diff(boxes[:, 0]) < 0) & (np.diff(numbers) == 0)
    if back.any():
        place = 1 + int(np.flatnonzero(back)[np.argmin(order[1:][back])])
        row = [names[numbers[place]], *(f"{value:g}" for value in boxes[place])]
        raise _wrong(path, int(order[place]), row, "a frame before that of an earlier row of its clip")
    ends = np.searchsorted(numbers, np.arange(1, len(names)))
    return dict(zip(names, np.split(boxes, ends), strict=True)) if names else {}


def _wrong(path: Path, row: int, values: Sequence[Any], problem: str) -> HarcacheError:
    found = ", ".join(f"{name} {value}" for name, value in zip(("clip", *_NUMBERS), values, strict=True))
    return HarcacheError(f"{path}: row {row + 1} ({found}) has {problem}; correct the file")


@lru_cache(maxsize=1)
def _read_once(path: Path, token: str) -> Mapping[str, np.ndarray]:
    return read_boxes(path)


def _rows(given: Mapping[str, np.ndarray], clip: Clip, ambiguous: Container[str]) -> np.ndarray:
    name = name_in(given, clip, ambiguous)
    return np.empty((0, 6)) if name is None else given[name]


def _by_frame(rows: np.ndarray, clip: Clip) -> list[np.ndarray]:
    """A frame's (n, 5) float32, best score first."""
    if len(rows) and rows[-1, 0] >= clip.frames:
        raise HarcacheError(f"its boxes go up to frame {rows[-1, 0]:.0f}, but it has {clip.frames} frames")
    outside = rows[(rows[:, 3] > clip.width) | (rows[:, 4] > clip.height)]
    if len(outside):
        raise HarcacheError(
            f"its box {outside[0, 1:5].tolist()} in frame {outside[0, 0]:.0f} leaves the image, which has "
            f"{clip.width}x{clip.height} pixels; cut the boxes at its border"
        )
    rows = rows[np.lexsort((-rows[:, 5], rows[:, 0]))]
    starts = np.searchsorted(rows[:, 0], np.arange(1, clip.frames))
    return np.split(rows[:, 1:].astype(np.float32), starts)

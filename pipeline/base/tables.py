"""Tables as CSV and values as JSON: the one place that reads and writes them.

What is read may come from anybody, so lines, fields and nesting are bounded, and an error names the file, the
line and what was expected. The same values are always written as the same bytes, whole or not at all.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import write_if_changed

__all__ = [
    "Table",
    "json_text",
    "parse_json",
    "read_json",
    "read_rows",
    "read_table",
    "write_json",
    "write_table",
]

_Row = TypeVar("_Row")
_LONGEST_LINE = 1_000_000  # characters; the csv module itself bounds a field to 131,072
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # as undecodable bytes are read


@dataclass(frozen=True, slots=True)
class Table(Generic[_Row]):
    """A table that was read: its columns, those that its reader does not know, and its rows.

    ``lines`` has for each row the line of the file that it ends on.
    """

    path: Path
    columns: tuple[str, ...]
    unknown: tuple[str, ...]
    rows: list[_Row]
    lines: list[int]


def read_table(
    path: Path,
    parse: Callable[[Mapping[str, str]], _Row],
    required: Sequence[str],
    *,
    known: Collection[str] | None = None,
    strip: bool = False,
    remedy: str = "",
) -> Table[_Row]:
    """Read a CSV table whose first line names its columns; ``parse`` makes a row of {column: text}.

    Columns may stand in any order. Those that are neither ``required`` nor ``known`` are in the result's
    ``unknown``, for the caller to refuse or to name; without ``known`` there are none. ``strip`` takes blanks
    from both ends of all names and values.

    Raises HarcacheError, with the file, the line and ``remedy``, for what is not UTF-8 or not CSV, a column
    that is missing or comes twice, a row that is longer or shorter than the first line, and whatever
    HarcacheError or ValueError ``parse`` raises. A missing file raises FileNotFoundError.
    """
    lines = read_rows(path, strip=strip, remedy=remedy)
    first, header = next(lines, (1, []))
    line = first
    parsed, ends = [], []
    try:
        _check_columns(header, required, known)
        for line, fields in lines:
            if len(fields) != len(header):
                raise HarcacheError(
                    f"wrong number of columns: {len(fields)}, expected {len(header)} as in the first line"
                )
            parsed.append(parse(dict(zip(header, fields, strict=True))))
            ends.append(line)
    except _Located:
        raise
    except (HarcacheError, ValueError) as error:
        raise HarcacheError(f"{path}, line {line}: {error}{remedy}") from error
    unknown = [] if known is None else [name for name in header if name not in {*required, *known}]
    return Table(path, tuple(header), tuple(unknown), parsed, ends)


class _Located(HarcacheError):
    """An error that names its line already."""


def read_rows(path: Path, *, strip: bool = False, remedy: str = "") -> Iterator[tuple[int, list[str]]]:
    """Give the lines of a CSV file that are not empty as (number of the last line, fields).

    UTF-8, with or without a byte order mark. Raises HarcacheError as `read_table` does.
    """
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(_checked_lines(file), strict=True, skipinitialspace=strip)
        try:
            for fields in reader:
                if fields:
                    yield reader.line_num, [text.strip() for text in fields] if strip else fields
        except csv.Error as error:
            raise _Located(f"{path}, line {max(reader.line_num, 1)}: {error}{remedy}") from error
        except HarcacheError as error:
            # The line that is refused was not counted yet.
            raise _Located(f"{path}, line {reader.line_num + 1}: {error}{remedy}") from error


def _checked_lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise HarcacheError(f"it has over {_LONGEST_LINE:,} characters: expected a row of a CSV table")
        if not line.isascii() and (found := _NOT_UTF8.search(line)):
            byte = ord(found[0]) - 0xDC00
            raise HarcacheError(f"byte 0x{byte:02x} is not UTF-8: expected a table in UTF-8")
        yield line


def _check_columns(header: Sequence[str], required: Sequence[str], known: Collection[str] | None) -> None:
    lacking = next((name for name in required if name not in header), None)
    if lacking is not None:
        optional = [] if known is None else [name for name in known if name not in required]
        form = ",".join(required) + (f"[,{','.join(optional)}]" if optional else "")
        found = ", ".join(header) or "none"
        raise HarcacheError(f"no column '{lacking}': expected {form}. Columns found: {found}")
    twice = [name for name, times in Counter(header).items() if times > 1]
    if twice:
        raise HarcacheError(f"column '{twice[0]}' comes twice: expected each once")


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bool:
    """Write a CSV table in UTF-8, atomically and only when that changes the file; return whether it did.

    None is written as nothing, other values as ``str`` has them.
    """
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow(header)
    writer.writerows(rows)
    return write_if_changed(path, "".join(lines).encode())


class _Lines(list[str]):
    """Rows as the csv module gives them, ended by a line feed.

    The module quotes what ends a line, and readers take a carriage return for that as well.
    """

    def write(self, row: str) -> None:
        self.append(row.removesuffix("\r\n") + "\n")


def parse_json(text: bytes | str) -> Any:
    """Return the value of a JSON text; ValueError says what is wrong with it, too deep nesting too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """Read a file that holds one JSON object; HarcacheError, with ``remedy``, for anything else."""
    try:
        found = parse_json(path.read_bytes())
    except ValueError as error:
        raise HarcacheError(f"{path} is no JSON ({error}){remedy}") from error
    if not isinstance(found, dict):
        raise HarcacheError(f"{path} holds no JSON object{remedy}")
    return found


def json_text(value: Any, *, sort_keys: bool = False) -> str:
    """Return a value as JSON to read, paths as text, without a line break at the end."""
    return json.dumps(value, indent=1, sort_keys=sort_keys, default=_path_as_text)


def _path_as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def write_json(path: Path, value: Any, *, sort_keys: bool = False) -> bool:
    """Write a value as JSON, atomically and only when that changes the file; return whether it did."""
    return write_if_changed(path, (json_text(value, sort_keys=sort_keys) + "\n").encode())

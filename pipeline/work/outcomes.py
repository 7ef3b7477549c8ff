"""How a stage's clips ended, in two small files that every stage writes in the same way.

Only clips that are not ok are listed: a list of all of them would repeat the manifest. The counts come last
and hold a digest of every table that the stage wrote, since DVC moves them together with those.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any, Protocol

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import file_digest, write_if_changed
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.base.tables import json_text, parse_json, read_table, write_table
from harcache.pipeline.work.parts import file_problem

__all__ = [
    "Counts",
    "Ended",
    "check_max_failed",
    "check_max_skipped",
    "check_usable",
    "listed_tables",
    "read_counts",
    "read_failures",
    "table_problem",
    "write_counts",
    "write_failures",
]

_COLUMNS = ("id", "status", "reason")
_TABLE = re.compile(r"(failures/)?\w+\.csv")


class Ended(Protocol):
    """A clip's id and its end: status "ok", "skipped", "failed" or (ok after all) "repaired", and why."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def status(self) -> str: ...  # noqa: D102
    @property
    def reason(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Counts:
    """Clips of a stage by the way they ended; the three add up to all clips."""

    ok: int
    skipped: int
    failed: int

    @property
    def total(self) -> int:
        """All clips."""
        return self.ok + self.skipped + self.failed


def write_failures(path: Path, outcomes: Iterable[Ended]) -> bool:
    """Write id, status and reason of the outcomes that are not ok, by id; return whether it changed."""
    rows = sorted((o.id, o.status, o.reason) for o in outcomes if o.status != "ok")
    return write_table(path, _COLUMNS, rows)


def read_failures(path: Path) -> list[tuple[str, str, str]]:
    """Read what `write_failures` wrote: (id, status, reason)."""
    if not path.is_file():
        raise HarcacheError(f"{path} is missing; run the stage of that name, which writes it")
    found = read_table(path, _failure_from_row, _COLUMNS, remedy="; run the stage again")
    return found.rows


def _failure_from_row(row: Mapping[str, str]) -> tuple[str, str, str]:
    return row["id"], row["status"], row["reason"]


def write_counts(path: Path, counts: Counts, tables: Iterable[Path] = ()) -> bool:
    """Write the counts as JSON, with the digests of the stage's ``tables``; return whether that changed it.

    Tables are named from the folder above that of ``path``.
    """
    listed = {
        table.relative_to(path.parent.parent).as_posix(): [table.stat().st_size, file_digest(table)]
        for table in sorted(tables)
    }
    return write_if_changed(path, _counts_text(asdict(counts) | {"tables": listed}))


def read_counts(path: Path) -> Counts:
    """Read what `write_counts` wrote; raises HarcacheError where it is missing or damaged."""
    values = _read_counts(path)
    return Counts(values["ok"], values["skipped"], values["failed"])


def listed_tables(path: Path) -> list[Path]:
    """Return the tables whose digests the counts hold: none in those of earlier versions."""
    return [path.parent.parent / name for name in _read_counts(path).get("tables", {})]


def table_problem(table: Path, path: Path) -> str | None:
    """Return how a table differs from what the counts in ``path`` say of it; None where they say nothing."""
    listed = _read_counts(path).get("tables", {}).get(table.relative_to(path.parent.parent).as_posix())
    return file_problem(table, *listed) if listed else None


def _read_counts(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
        values = parse_json(text)
        values.pop("digest", None)
        if not {"ok", "skipped", "failed"} <= values.keys() or text != _counts_text(values):
            raise ValueError("it does not match its digest")
        # What is named here is removed when it does not fit.
        for name, (size, digest) in values.get("tables", {}).items():
            if not (_TABLE.fullmatch(name) and isinstance(size, int) and isinstance(digest, str)):
                raise ValueError(f"it names '{name}', which is no table of a stage")
    except FileNotFoundError:
        raise HarcacheError(f"{path} is missing; run the stage of that name, which writes it") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise HarcacheError(f"{path} is damaged ({error}); run the stage of that name again") from error
    return values


def _counts_text(values: Mapping[str, Any]) -> bytes:
    # Those of earlier versions have neither tables nor a digest.
    sealed = dict(values) | ({"digest": fingerprint(values)} if "tables" in values else {})
    return (json_text(sealed) + "\n").encode()


def check_max_failed(stage: str, counts: Counts, max_failed: float, failures_path: Path) -> None:
    """Raise HarcacheError when more than ``max_failed`` (0 to 1) of all clips failed."""
    if counts.failed <= max_failed * counts.total:
        return
    first = next(iter(_reasons(failures_path, "failed")), ": no reason kept")
    share = _share(counts.failed, counts.total)
    raise HarcacheError(
        f"{stage}: {counts.failed} of {counts.total} failed, more than {max_failed:.1%}; first {first}. "
        f"All are listed in {failures_path}: mend or remove them, or allow more by "
        f"--max-failed {share}, for dvc by HARCACHE_MAX_FAILED={share}"
    )


def check_max_skipped(
    stage: str, skipped: Sequence[str], total: int, max_skipped: float, failures_path: Path, hint: str
) -> None:
    """Raise HarcacheError when more than ``max_skipped`` (0 to 1) of all clips were skipped unasked.

    ``skipped``: the ids of those that nobody asked to skip; ``hint``: sentences on what may be wrong.
    """
    if len(skipped) <= max_skipped * total:
        return
    share = _share(len(skipped), total)
    raise HarcacheError(
        f"{stage}: {len(skipped)} of {total} skipped that nobody asked to skip, more than {max_skipped:.1%}; "
        f"first '{skipped[0]}'. {hint} All are listed in {failures_path}: add what they lack, or allow it "
        f"by --max-skipped {share}, for dvc by HARCACHE_MAX_SKIPPED={share}, or for good by "
        f"max_skipped: {share} in the section {stage} of params.yaml"
    )


def check_usable(stage: str, counts: Counts, failures_path: Path, hint: str) -> None:
    """Raise HarcacheError when no clip is ok; it names two that are not, and adds the sentences ``hint``."""
    if counts.ok:
        return
    first = "; ".join(_reasons(failures_path, "skipped", "failed")[:2]) or "the manifest lists none"
    raise HarcacheError(
        f"{stage}: none of {counts.total} clips can be used, {counts.skipped} skipped and {counts.failed} "
        f"failed; first {first}. {hint}{' ' if hint else ''}All are listed in {failures_path}"
    )


def _reasons(failures_path: Path, *statuses: str) -> list[str]:
    """Return the clips that ended so, each with its reason."""
    return [f"{id}: {reason}" for id, status, reason in read_failures(failures_path) if status in statuses]


def _share(part: int, total: int) -> str:
    """Return the least share that allows as many, in hundredths."""
    return f"{ceil(100 * part / total) / 100:g}"

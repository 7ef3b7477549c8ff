"""Verify: whether every file of a dataset's caches still is as it was written.

Files are compared with the digests that records, indices and counts keep: each is read once, none decoded.
A damaged part is removed whole and its stage makes it again; mending inside it would need trust in the rest.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harcache import cache
from harcache.cache.clip_index import index_problems
from harcache.cache.errors import CacheError
from harcache.cache.store_writer import mark_incomplete
from harcache.pipeline.base.errors import HarcacheError, NewerFormatError
from harcache.pipeline.base.progress import notice, progress, say, say_json
from harcache.pipeline.base.threads import thread_pool
from harcache.pipeline.clips import read_manifest
from harcache.pipeline.work.outcomes import listed_tables, table_problem
from harcache.pipeline.work.parts import (
    Record,
    dataset_lock,
    discard_part,
    file_problem,
    read_record,
    record_path,
)
from harcache.stages.shared.contents import present, record_folder
from harcache.stages.shared.crop_table import read_crops
from harcache.stages.shared.units import all_outcomes
from harcache.stages.shared.workspace import EXTRACTION, Workspace

__all__ = ["Problem", "Verified", "report", "verify"]

_RECORD = re.compile(r"part-(\d+)\.json")
_PART = re.compile(r"part-(\d+)\.h5|[^/]+/c\.(\d+)(?:\.0)+")
_INDEX = re.compile(r"(?:[^/]+/)?zarr\.json|[^/]+/c/[\d/]+")
_NAMED = 8  # clips that a line of text names


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that is not as it was written, and the clips that can't be trusted because of it.

    ``part``: the one to make again; None where a table or an index alone is, or where a stage has yet to run.
    """

    stage: str
    file: Path
    what: str
    clips: tuple[str, ...]
    part: int | None = None

    def __str__(self) -> str:
        more = f" and {len(self.clips) - _NAMED} more" if len(self.clips) > _NAMED else ""
        return f"{self.file}: {self.what}; clips: {', '.join(self.clips[:_NAMED]) or 'none'}{more}"


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` found. ``strays``: files that no cache has; they harm none."""

    files: int
    problems: tuple[Problem, ...]
    strays: tuple[Path, ...]

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that make again what is damaged, in their order."""
        damaged = {problem.stage for problem in self.problems}
        return tuple(stage for stage in EXTRACTION if stage in damaged)


def verify(workspace: Workspace, repair: bool = False) -> Verified:
    """Compare every table, record, shard, HDF5 part and index file of a dataset with what was written.

    With ``repair`` each table and each part in which something is wrong is removed, record before files, and
    each store in which something is wrong is marked incomplete, so that the next run of the stage makes just
    that again. Tables of before their digests were kept are taken as they are.
    What this version can't read counts as damaged, unless a newer one wrote it: NewerFormatError, before
    anything is removed.
    """
    there = present(workspace)
    with dataset_lock(workspace.data, reading=not repair):
        caches = {stage: _list_files(stage, folder) for stage, folder in there.items()}
        tables, damaged = _check_tables(workspace, caches.values())
        spoilt = {problem.file for problem in damaged}
        problems = damaged + [
            problem
            for one in caches.values()
            for problem in _problems(one, _expected(one, caches, workspace, spoilt))
        ]
        if repair:
            for path in spoilt:
                path.unlink(missing_ok=True)
            for one in caches.values():
                _repair(one, [problem for problem in problems if problem.stage == one.stage])
    files = tables + sum(one.checked for one in caches.values())
    return Verified(files, tuple(problems), tuple(stray for one in caches.values() for stray in one.strays))


def report(found: Verified, dataset: str, repaired: bool, as_json: bool = False) -> None:
    """Print what was found, and raise HarcacheError when something is wrong that is not repaired."""
    tell: Callable[[str], None] = notice if as_json else say
    if as_json:
        say_json({"dataset": dataset, "repaired": repaired} | asdict(found))
    for problem in found.problems:
        tell(str(problem))
    for stray in found.strays:
        tell(f"{stray}: no file of a cache; harmless")
    if not found.problems:
        tell(f"{dataset}: {found.files} files are as they were written")
    elif repaired:
        tell(f"{dataset}: removed; 'dvc repro' or harcache {', '.join(found.stages)} makes it again")
    else:
        raise HarcacheError(
            f"{dataset}: {len(found.problems)} things are wrong in {found.files} files; "
            f"'harcache cache verify {dataset} --repair' removes what is damaged, 'dvc repro' makes it again"
        )


@dataclass
class _Cache:
    """The files of a cache as they lie there, by part number; ``unreadable``: parts with a damaged record."""

    stage: str
    folder: Path
    records: dict[int, Record] = field(default_factory=dict)
    unreadable: set[int] = field(default_factory=set)
    files: dict[int, list[Path]] = field(default_factory=lambda: defaultdict(list))
    index: list[Path] = field(default_factory=list)
    strays: list[Path] = field(default_factory=list)

    @property
    def is_store(self) -> bool:
        return self.folder.suffix == ".zarr"

    @property
    def checked(self) -> int:
        """Number of files, strays apart."""
        return len(self.records) + len(self.unreadable) + sum(map(len, self.files.values())) + len(self.index)

    def ids(self, *status: str) -> list[str]:
        """The clips in the readable records that ended so."""
        return [o.id for o in all_outcomes(list(self.records.values())) if o.status in status]


def _check_tables(workspace: Workspace, caches: Iterable[_Cache]) -> tuple[int, list[Problem]]:
    """Return how many tables have a digest, and the problems of these and of the counts that hold it."""
    all_ids = tuple(sorted({id for one in caches for id in one.ids("ok", "skipped", "failed")}))
    checked, problems = 0, []
    for stage in EXTRACTION:
        counts = workspace.counts(stage)
        # A stage that has ended wrote both, so that either tells of the other.
        if not counts.exists() and not workspace.failures(stage).exists():
            continue
        try:
            tables = listed_tables(counts)
        except HarcacheError as error:
            problems.append(Problem(stage, counts, str(error).removeprefix(f"{counts} "), ()))
            continue
        checked += 1 + len(tables)
        for table in tables:
            if what := table_problem(table, counts):
                concerned = () if table == workspace.failures(stage) else all_ids
                problems.append(Problem(stage, table, what, concerned))
    return checked, problems


def _list_files(stage: str, folder: Path) -> _Cache:
    found = _Cache(stage, folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        part = _RECORD.fullmatch(path.name)
        if part and path == record_path(record_folder(folder), int(part[1])):
            _read_record(path, int(part[1]), found)
        elif part := _PART.fullmatch(name):
            found.files[int(part[1] or part[2])].append(path)
        elif found.is_store and _INDEX.fullmatch(name):
            found.index.append(path)
        else:
            found.strays.append(path)
    return found


def _read_record(path: Path, part: int, found: _Cache) -> None:
    try:
        found.records[part] = read_record(path)
    except NewerFormatError:
        raise
    except (HarcacheError, OSError):
        found.unreadable.add(part)


def _expected(
    one: _Cache, caches: dict[str, _Cache], workspace: Workspace, spoilt: Container[Path]
) -> list[str]:
    """Return the clips that a cache must have a record of, as far as tables that are not ``spoilt`` tell."""
    if one.stage == "detect":
        return [] if workspace.manifest in spoilt else [clip.id for clip in read_manifest(workspace.manifest)]
    if one.stage == "pose":
        return caches["detect"].ids("ok") if "detect" in caches else []
    return [] if workspace.crops in spoilt else list(read_crops(workspace.crops))


def _problems(one: _Cache, expected: Sequence[str]) -> Iterator[Problem]:
    lost = list(_missing_records(one, expected))
    yield from lost
    yield from _changed_files(one)
    if one.is_store:
        yield from _index_problems(one, bool(lost))


def _missing_records(one: _Cache, expected: Sequence[str]) -> Iterator[Problem]:
    recorded = set(one.ids("ok", "skipped", "failed"))
    absent = tuple(id for id in expected if id not in recorded)
    parts = sorted(one.unreadable | one.files.keys() - one.records.keys())
    for part in parts:
        what = (
            "the record is damaged"
            if part in one.unreadable
            else "the record of files that lie there is missing"
        )
        yield Problem(one.stage, record_path(record_folder(one.folder), part), what, absent, part)
    if absent and not parts:
        yield Problem(one.stage, one.folder, f"no record of these; run harcache {one.stage}", absent)


def _changed_files(one: _Cache) -> Iterator[Problem]:
    """Find the files of parts that are not as their record says."""
    files = [(record, *file) for record in one.records.values() for file in record.files]
    with (
        progress(len(files), f"verify {one.stage}", unit="files") as bar,
        thread_pool() as pool,
    ):
        results = pool.map(lambda file: file_problem(one.folder / file[1], *file[2:]), files)
        for (record, name, _, _), what in zip(files, results, strict=True):
            bar.advance(1, failed=what is not None)
            if what is not None:
                yield Problem(
                    one.stage, one.folder / name, what, _unreadable_clips(one, record, name), record.part
                )


def _unreadable_clips(one: _Cache, record: Record, name: str) -> tuple[str, ...]:
    """Return the clips of a part that can't be read; all, where reading does not tell."""
    ids = tuple(outcome.id for outcome in record.outcomes if outcome.status == "ok")
    if not one.is_store:
        return ids
    try:
        store = cache.open(one.folder)
    except CacheError:
        return ids
    return tuple(id for id in ids if not _readable(store, name.partition("/")[0], id)) or ids


def _readable(store: cache.ClipStore, array: str, id: str) -> bool:
    try:
        store.read(array, id)
    except CacheError:
        return False
    return True


def _index_problems(one: _Cache, records_lost: bool) -> Iterator[Problem]:
    problems = index_problems(one.folder)
    for file, what in problems.items():
        yield Problem(one.stage, file, what, tuple(one.ids("ok")))
    if problems or records_lost:
        return
    store = cache.open(one.folder)
    rows = store.attributes["shard_rows"]
    indexed = zip(store.ids, store.start.tolist(), store.length.tolist(), strict=True)
    recorded = {
        (outcome.id, part * rows + outcome.start, outcome.length)
        for part, record in one.records.items()
        for outcome in record.outcomes
        if outcome.status == "ok"
    }
    differing = sorted({id for id, _, _ in recorded.symmetric_difference(indexed)})
    if differing:
        what = f"the index and the records disagree; run harcache {one.stage}"
        yield Problem(one.stage, one.folder / "zarr.json", what, tuple(differing))


def _repair(one: _Cache, problems: Sequence[Problem]) -> None:
    for part in sorted({problem.part for problem in problems if problem.part is not None}):
        discard_part(record_folder(one.folder), part, one.files[part])
    # Clips without a record alone need no repair: the store was whole before they were added.
    if one.is_store and any(problem.file != one.folder for problem in problems):
        mark_incomplete(one.folder)

"""What the stages that build parts share: plan, run the units, record how every clip ended.

A stage gives what it wants of each clip and a function that makes one part; the rest is here, once.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from harcache.pipeline.base.errors import HarcacheError, StandstillError
from harcache.pipeline.base.files import partial_path
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.base.progress import say
from harcache.pipeline.clips import Clip
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.outcomes import (
    Counts,
    check_max_failed,
    check_max_skipped,
    check_usable,
    write_counts,
    write_failures,
)
from harcache.pipeline.work.parts import Outcome, Record, publish, read_records, remove_part, sound_records
from harcache.pipeline.work.plan import Unit, Wanted, plan
from harcache.stages.shared.rates import Timer, rate_file, rate_summary, write_rate
from harcache.stages.shared.workspace import Workspace

__all__ = [
    "CLIPS_PER_PART",
    "Inputs",
    "Parts",
    "Rules",
    "SkipError",
    "Unasked",
    "all_outcomes",
    "build_parts",
    "build_table_part",
    "finish_stage",
    "inputs_from",
    "part_file",
    "parts_of",
    "process_clips",
    "publish_part",
]

# Parts of the small stages: few enough clips that losing a unit costs a minute, enough that files stay few.
CLIPS_PER_PART = 32

_Result = TypeVar("_Result")


class SkipError(HarcacheError):
    """Raised by a clip's work: nothing is wrong, but there is nothing to be had of this clip."""


@dataclass(frozen=True)
class Inputs:
    """What an earlier stage holds: the fingerprint of each clip that ended well there, and the others.

    ``skipped``: an outcome for each clip that did not end well. ``token`` is another one whenever the earlier
    stage's parts are. ``noted``: what its `Rules` noted of each clip, if its part was made by any.
    """

    fingerprints: Mapping[str, str]
    skipped: tuple[Outcome, ...]
    token: str
    noted: Mapping[str, int]


@dataclass(frozen=True)
class Unasked:
    """Clips that are skipped although nobody asked for it.

    ``max_skipped``: the part of all clips that params.yaml allows. ``hint``: sentences on what may be wrong.
    """

    ids: Sequence[str]
    max_skipped: float
    hint: str


@dataclass(frozen=True)
class Rules:
    """Rules that were added to a stage and change some clips' results: all others keep their fingerprints.

    ``version`` is noted in each part's record; parts of other versions are made again. ``changed`` tells of a
    clip whether its result is not what it was before there were any rules, so that its fingerprint becomes
    another one. ``noted`` gives a number for the part's record to keep.
    """

    version: int
    changed: Callable[[str], bool]
    noted: Callable[[str], int]

    @staticmethod
    def wanted(clip: Clip, inputs: str, version: int) -> Wanted:
        """Return a clip of which ``inputs`` stands for all that its result depends on but the rules."""
        return Wanted(clip, inputs, alternative=_changed(inputs, version))

    def outcome(self, outcome: Outcome) -> Outcome:
        """Return how a clip ended, with the fingerprint of what it has become."""
        if outcome.status != "ok" or not self.changed(outcome.id):
            return outcome
        return replace(outcome, fingerprint=_changed(outcome.fingerprint, self.version))


def _changed(inputs: str, version: int) -> str:
    return fingerprint("rules", version, inputs)


def part_file(folder: Path, part: int) -> Path:
    """Return the HDF5 file of a part."""
    return folder / f"part-{part:05d}.h5"


def inputs_from(folder: Path, clips: Sequence[Clip]) -> Inputs:
    """Read what the earlier stage that writes parts into ``folder`` holds of ``clips``.

    Raises HarcacheError when a clip has no outcome at all: that stage has not run over this manifest.
    """
    records = sound_records(folder, folder)
    found = {outcome.id: outcome for outcome in all_outcomes(records)}
    absent = [clip.id for clip in clips if clip.id not in found]
    if absent:
        raise HarcacheError(
            f"{folder} lacks {len(absent)} of {len(clips)} clips, first '{absent[0]}'; run its stage first"
        )
    wanted = [found[clip.id] for clip in clips]
    return Inputs(
        {one.id: one.fingerprint for one in wanted if one.status == "ok"},
        tuple(
            Outcome(o.id, "skipped", "", f"{o.status} in {folder.name}") for o in wanted if o.status != "ok"
        ),
        _token(records),
        {id: number for record in records if record.rules for id, number in _noted(record)},
    )


def _noted(record: Record) -> Iterator[tuple[str, int]]:
    yield from ((outcome.id, 0) for outcome in record.outcomes)
    yield from record.notes


@lru_cache(maxsize=2)
def parts_of(folder: Path, token: str) -> Mapping[str, Path]:
    """Return the HDF5 part of each clip in ``folder``; read once a process and ``token`` (see `Inputs`).

    Raises StandstillError where ``folder`` holds other parts than those of ``token``.
    """
    records = read_records(folder)
    if _token(records) != token:
        raise StandstillError(
            f"{folder} does not hold here what the command saw in it: a shared file system may take a minute "
            "to show new files everywhere; run again"
        )
    return {outcome.id: part_file(folder, record.part) for record in records for outcome in record.outcomes}


def _token(records: Sequence[Record]) -> str:
    return fingerprint([record.files for record in records])


@dataclass(frozen=True)
class Parts:
    """What a stage shall hold: the wanted clips, in parts of at most ``capacity`` in ``folder``.

    ``records``: where the parts' records lie; ``rules``: the version of the stage's `Rules`, if it has any.
    """

    stage: str
    folder: Path
    records: Path
    wanted: Sequence[Wanted]
    capacity: int = CLIPS_PER_PART
    rules: int = 0


def build_parts(
    parts: Parts, process: Callable[[Unit, Any], Report], context: Any, engine: Engine, retry_failed: bool
) -> list[Record]:
    """Make the parts that are missing or stale, each by ``process``, and return the records of all."""
    parts.folder.mkdir(parents=True, exist_ok=True)
    # What a killed run, or one that met a full disk, left behind: no other process works here now.
    for stray in parts.folder.rglob("*.partial"):
        stray.unlink()
    records = sound_records(parts.folder, parts.records)
    planned = plan(parts.wanted, records, parts.capacity, retry_failed, parts.rules)
    for part in planned.remove:
        remove_part(parts.folder, parts.records, part)
    kept = sum(len(record.outcomes) for record in planned.keep)
    reports = engine.run(process, planned.make, context, parts.stage, clips_done=kept)
    say(rate_summary(parts.stage, kept, reports))
    if reports:
        write_rate(rate_file(parts.folder.parent, parts.stage), reports)
    return sound_records(parts.folder, parts.records)


def process_clips(
    unit: Unit, work: Callable[[Clip], _Result], length: Callable[[_Result], int] = lambda _: 0
) -> tuple[dict[str, _Result], list[Outcome]]:
    """Do ``work`` for each clip of the unit that is not given up; a HarcacheError fails that clip alone, a
    SkipError skips it.

    But a StandstillError is raised: it says nothing of the clip.

    Returns the results by clip id, and an outcome for every clip; ``length`` tells the rows that a result
    takes in the part, one clip after the other.
    """
    results: dict[str, _Result] = {}
    outcomes = []
    start = 0
    given_up = dict(unit.given_up)
    for clip, inputs in zip(unit.clips, unit.fingerprints, strict=True):
        try:
            if clip.id in given_up:
                raise HarcacheError(given_up[clip.id])
            result = work(clip)
        except StandstillError:
            raise
        except HarcacheError as error:
            skipped = isinstance(error, SkipError)
            outcomes.append(Outcome(clip.id, "skipped" if skipped else "failed", inputs, str(error)))
            continue
        rows = length(result)
        results[clip.id] = result
        outcomes.append(Outcome(clip.id, "ok", inputs, "", start, rows))
        start += rows
    return results, outcomes


def build_table_part(
    folder: Path,
    unit: Unit,
    work: Callable[[Clip], _Result],
    write: Callable[[Path, Mapping[str, _Result]], None],
    timer: Timer,
    rules: Rules | None = None,
) -> Report:
    """Make one part of a stage that keeps one file a part: ``write`` gets what ``work`` gave, by clip id."""
    found, outcomes = process_clips(unit, work)
    if rules:
        outcomes = [rules.outcome(outcome) for outcome in outcomes]
    final = part_file(folder, unit.part)
    temporary = partial_path(final)
    with timer("write"):
        write(temporary, found)
    return publish_part(folder, folder, unit, outcomes, {temporary: final}, timer, rules)


def publish_part(
    folder: Path,
    records: Path,
    unit: Unit,
    outcomes: Sequence[Outcome],
    files: Mapping[Path, Path],
    timer: Timer,
    rules: Rules | None = None,
) -> Report:
    """Commit what a unit wrote, or remove it after a trial, and report on it."""
    with timer("write"):
        if unit.trial:
            for temporary in files:
                temporary.unlink()
        else:
            noted = [(o.id, rules.noted(o.id)) for o in outcomes if rules and o.status == "ok"]
            notes = [(id, number) for id, number in noted if number]
            publish(folder, records, unit.part, outcomes, files, rules.version if rules else 0, notes)
    counted = Counter(outcome.status for outcome in outcomes)
    frames = sum(clip.frames for clip in unit.clips)
    return Report(
        unit.part, counted["ok"], counted["skipped"], counted["failed"], frames, dict(timer.seconds)
    )


def all_outcomes(records: Sequence[Record]) -> list[Outcome]:
    """Return how every clip of the records ended."""
    return [outcome for record in records for outcome in record.outcomes]


def finish_stage(
    stage: str,
    workspace: Workspace,
    outcomes: Sequence[Outcome],
    ok: int = 0,
    tables: Sequence[Path] = (),
    unasked: Unasked | None = None,
) -> Counts:
    """Write and print how the stage's clips ended, and raise HarcacheError when too many failed.

    So it does when too many were skipped ``unasked``, and when no clip ended well. ``outcomes`` are all clips
    but for ``ok`` more that ended well, ``tables`` what else it wrote whole.
    """
    by_status = Counter(outcome.status for outcome in outcomes)
    counts = Counts(ok + by_status["ok"], by_status["skipped"], by_status["failed"])
    write_failures(workspace.failures(stage), outcomes)
    write_counts(workspace.counts(stage), counts, [workspace.failures(stage), *tables])
    say(f"{stage}: {counts.ok} ok, {counts.skipped} skipped, {counts.failed} failed of {counts.total} clips")
    listed = workspace.failures(stage)
    check_max_failed(stage, counts, workspace.max_failed, listed)
    check_usable(stage, counts, listed, unasked.hint if unasked else "")
    if unasked:
        most = unasked.max_skipped if workspace.max_skipped is None else workspace.max_skipped
        check_max_skipped(stage, unasked.ids, counts.total, most, listed, unasked.hint)
    return counts

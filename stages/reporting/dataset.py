"""The sections on the dataset itself: its clips, classes and lengths, and how they ended in each stage."""

from collections import Counter
from dataclasses import astuple

from markupsafe import Markup

from harcache.pipeline.work.outcomes import read_counts, read_failures
from harcache.stages.pictures.charts import histogram
from harcache.stages.reporting.blocks import Table
from harcache.stages.reporting.contents import Contents
from harcache.stages.shared.workspace import EXTRACTION

__all__ = ["LISTED", "class_tables", "facts", "failure_table", "length_chart", "stage_table", "unsuccessful"]

LISTED = 500  # rows of failures: the whole list stands in failures/*.csv
_LONGEST = 600  # letters of a reason


def facts(contents: Contents) -> list[tuple[str, str]]:
    """Return what there is to say of all clips together, as (name, text)."""
    clips = contents.clips.values()
    frames = sum(clip.frames for clip in clips)
    minutes = sum(clip.frames / clip.fps for clip in clips if clip.fps > 0) / 60
    length = f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"
    sizes = Counter(f"{clip.width} by {clip.height}" for clip in clips)
    rates = Counter(f"{clip.fps:.4g}" for clip in clips)
    facts = [("clips", f"{len(clips):,}"), ("frames", f"{frames:,}"), ("length", length)]
    facts += [("frame size", _commonest(sizes)), ("frames a second", _commonest(rates))]
    facts += [(f"classes of {protocol}", f"{len(names):,}") for protocol, names in contents.classes.items()]
    people = {clip.subject for clip in clips} - {None}
    return [*facts, ("performers", f"{len(people):,}")] if people else facts


def _commonest(counts: Counter[str]) -> str:
    if len(counts) < 2:
        return next(iter(counts), "")
    value, count = counts.most_common(1)[0]
    others = "another" if len(counts) == 2 else f"{len(counts) - 1} others"
    return f"{value} ({count / counts.total():.0%}), and {others}"


def length_chart(contents: Contents) -> Markup:
    """Draw how many clips have how many frames."""
    return histogram([clip.frames for clip in contents.clips.values()], "frames of a clip", "clips")


def class_tables(contents: Contents) -> list[Table]:
    """Return for each protocol how many clips of each class are in which split."""
    tables = []
    for protocol, names in contents.classes.items():
        counts = Counter((clip.label(protocol), clip.split(protocol)) for clip in contents.clips.values())
        splits = [name for name in ("train", "val", "test") if any(split == name for _, split in counts)]
        rows = [
            (
                label,
                name,
                *(counts[label, split] for split in splits),
                sum(count for (found, _), count in counts.items() if found == label),
            )
            for label, name in enumerate(names)
        ]
        tables.append(Table(f"Clips of {protocol} by class", ("label", "class", *splits, "all"), rows))
    return tables


def stage_table(contents: Contents) -> Table | None:
    """Return how many clips ended how in each stage that has ended."""
    paths = {stage: contents.workspace.counts(stage) for stage in EXTRACTION}
    rows = [(stage, *astuple(read_counts(path))) for stage, path in paths.items() if path.is_file()]
    return Table("How the clips of each stage ended", ("stage", "ok", "skipped", "failed"), rows)


def unsuccessful(contents: Contents) -> list[tuple[str, str, str, str]]:
    """Return (id, stage, status, reason) of the clips that are not ok, the failed ones first."""
    found = [
        (id, stage, status, reason if len(reason) <= _LONGEST else reason[:_LONGEST] + "…")
        for stage in EXTRACTION
        if contents.workspace.failures(stage).is_file()
        for id, status, reason in read_failures(contents.workspace.failures(stage))
    ]
    return sorted(found, key=lambda end: end[2] != "failed")


def failure_table(contents: Contents) -> Table | None:
    """Return the clips that are not ok, with reasons; None where all are."""
    ends = unsuccessful(contents)
    if not ends:
        return None
    more = f"; the first {LISTED:,} of {len(ends):,}" if len(ends) > LISTED else ""
    caption = f"Clips that failed, were skipped or repaired{more}"
    return Table(caption, ("clip", "stage", "status", "reason"), ends[:LISTED])

"""Index: a folder of videos becomes ``manifest.csv`` and ``classes.csv``.

Every video is opened, so that a later stage never meets a wrong frame count; what did not change since the
last time is not. Threads do: FFmpeg and the digest leave Python's lock, and memory is one packet a thread.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import writing
from harcache.pipeline.base.progress import progress, say
from harcache.pipeline.base.threads import thread_pool
from harcache.pipeline.clips import Clip, write_classes, write_manifest
from harcache.pipeline.datasets.registry import Entry, scan
from harcache.pipeline.params import DatasetParams
from harcache.pipeline.video.probes import Probed, look_at, read_probes, recorder, write_probes
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import Counts
from harcache.pipeline.work.parts import Outcome
from harcache.stages.shared.outside import note_inputs
from harcache.stages.shared.units import finish_stage
from harcache.stages.shared.workspace import Workspace

__all__ = ["run"]

_NAMES, _REASONS = 5, 10  # that are shown
_NUMBER = re.compile(r"\d+")


def run(params: DatasetParams, workspace: Workspace, engine: Engine, *, threads: int | None = None) -> Counts:
    """Index the dataset's videos, write its tables, and print what is in them and what was left out.

    Counts are clips, and videos left out by the layout as skipped. ``threads`` None is one a core; workers of
    the engine are not needed. Raises HarcacheError, after everything is written, when too many failed.
    """
    if params.index.layout == "poses":
        # It loads h5py, which looking at videos need not wait for.
        from harcache.pipeline.datasets.poses import clips_of_poses

        clips, failed, classes = clips_of_poses(params)
        notes = [Outcome(name, "failed", fingerprint="", reason=why) for name, why in failed]
    else:
        clips, notes, classes = _clips_of_videos(params, workspace, threads)
    write_manifest(workspace.manifest, clips)
    write_classes(workspace.classes, classes)
    note_inputs(params, workspace)
    say(*_summary(clips, classes), *_listed(notes, workspace.failures("index")))
    return finish_stage("index", workspace, notes, len(clips), tables=[workspace.manifest, workspace.classes])


def _clips_of_videos(
    params: DatasetParams, workspace: Workspace, threads: int | None
) -> tuple[list[Clip], list[Outcome], dict[str, tuple[str, ...]]]:
    """Return the clips, what there is to tell of others, and the class names of each protocol."""
    found = scan(workspace.videos, params.index)
    names = sorted({entry.video for entry in found.entries})
    probed = _probe_all(workspace, names, threads)
    clips: list[Clip] = []
    notes = [Outcome(path, "skipped", fingerprint="", reason=why) for path, why in found.left_out]
    for entry in found.entries:
        clip, note = _clip(entry, probed[entry.video])
        clips += [clip] if clip else []
        notes += [note] if note else []
    return clips, notes, dict(found.classes)


def _probe_all(workspace: Workspace, names: Sequence[str], threads: int | None) -> dict[str, Probed]:
    memory = workspace.data / "probes.jsonl"
    known = read_probes(memory)
    # Written before anything is added: a torn last line would spoil the one after it.
    write_probes(memory, known)
    probed: dict[str, Probed] = {}
    with (
        writing(memory),
        recorder(memory) as record,
        progress(len(names), "index", unit="videos") as shown,
        thread_pool(threads) as pool,
    ):
        again = workspace.retry_failed
        looks = [pool.submit(look_at, workspace.videos, name, known.get(name), again) for name in names]
        for look in as_completed(looks):
            one = look.result()
            probed[one.video] = one
            if one is not known.get(one.video):
                record(one)
            shown.advance(1, failed=one.probe is None)
    write_probes(memory, probed)
    return probed


def _clip(entry: Entry, probed: Probed) -> tuple[Clip | None, Outcome | None]:
    """Return the clip, or None for one that failed, and what there is to tell of it."""
    try:
        clip = _checked_clip(entry, probed)
    except HarcacheError as error:
        return None, Outcome(entry.id, "failed", fingerprint="", reason=str(error))
    repairs = [entry.repair] if entry.repair else []
    if entry.end not in (None, clip.end):
        repairs.append(f"it went on after frame {clip.end - 1}, the video's last, and was cut there")
    repaired = Outcome(clip.id, "repaired", fingerprint="", reason="; ".join(repairs))
    return clip, repaired if repairs else None


def _checked_clip(entry: Entry, probed: Probed) -> Clip:
    found = probed.probe
    if found is None:
        raise HarcacheError(probed.reason)
    if entry.start >= found.frames:
        raise HarcacheError(
            f"the clip starts at frame {entry.start}, but {entry.video} has {found.frames} frames: mend its "
            "annotation"
        )
    return Clip(
        id=entry.id,
        video=entry.video,
        start=entry.start,
        end=found.frames if entry.end is None else min(entry.end, found.frames),
        height=found.height,
        width=found.width,
        fps=found.fps,
        size=found.size,
        mtime_ns=found.mtime_ns,
        digest=found.digest,
        subject=entry.subject,
        camera=entry.camera,
        setup=entry.setup,
        repetition=entry.repetition,
        labels=entry.labels,
        splits=entry.splits,
    )


def _summary(clips: Sequence[Clip], classes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return, as lines, how much there is, and how each protocol divides it."""
    videos = len({clip.video for clip in clips})
    frames = sum(clip.frames for clip in clips)
    hours = sum(clip.frames / clip.fps for clip in clips if clip.fps) / 3600
    lines = [f"index: {len(clips)} clips of {videos} videos, {frames} frames, {hours:.4f} hours"]
    for protocol, names in classes.items():
        sides = Counter(clip.split(protocol) for clip in clips)
        # Nothing to train on or to test with is worth a word; most datasets have no val.
        shown = ["train", *(["val"] if sides["val"] else []), "test"]
        counted = [f"{sides[side]} {side}" for side in shown]
        counted += [f"{sides[None]} in no split"] if sides[None] else []
        lines.append(f"index: {protocol}: {len(names)} classes, {', '.join(counted)}")
        if sides["train"] and sides["test"]:
            lines += [f"index: {protocol}: {line}" for line in _one_sided_classes(clips, protocol, names)]
    return lines


def _one_sided_classes(clips: Sequence[Clip], protocol: str, names: Sequence[str]) -> Iterator[str]:
    """Name the classes that are never tested, or tested but never learnt."""
    sides: dict[int, set[str]] = defaultdict(set)
    for clip in clips:
        label, split = clip.label(protocol), clip.split(protocol)
        if label is not None and split is not None:
            sides[label].add(split)
    for there, absent in (("train", "test"), ("test", "train")):
        found = [
            names[label] for label in sorted(sides) if there in sides[label] and absent not in sides[label]
        ]
        more = f" and {len(found) - _NAMES} more" if len(found) > _NAMES else ""
        if found:
            yield f"{len(found)} with {there} clips alone, no {absent}: {', '.join(found[:_NAMES])}{more}"


def _listed(notes: Sequence[Outcome], listed: Path) -> list[str]:
    """Return, line by line, what was left out, failed or was repaired, and why; long lists are shortened."""
    groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for note in sorted(notes, key=lambda note: (note.status, note.id)):
        groups[note.status, _NUMBER.sub("", note.reason)].append(note)
    largest = sorted(groups.values(), key=len, reverse=True)
    lines = [_group_line(group) for group in largest[:_REASONS]]
    if len(largest) > _REASONS:
        left = sum(map(len, largest[_REASONS:]))
        lines.append(f"index: {left} more for {len(largest) - _REASONS} more reasons; all are in {listed}")
    return lines


def _group_line(group: Sequence[Outcome]) -> str:
    first = group[0]
    such_as = "" if all(note.reason == first.reason for note in group) else "such as: "
    names = ", ".join(note.id for note in group[:_NAMES])
    more = f" and {len(group) - _NAMES} more" if len(group) > _NAMES else ""
    return f"index: {len(group)} {first.status} ({such_as}{first.reason}): {names}{more}"

"""Index: a folder of videos becomes ``manifest.csv`` and ``classes.csv``.

Every video is opened, so that a later stage never meets a wrong frame count; what did not change since the
last time is not. Threads do: FFmpeg and the digest leave Python's lock, and memory is one packet a thread.
"""

import os
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool

from pipeline.clips import Clip, write_classes, write_manifest
from pipeline.datasets import Entry, scan
from pipeline.engine import Engine
from pipeline.errors import HarcacheError
from pipeline.files import writing
from pipeline.outcomes import Counts
from pipeline.params import DatasetParams
from pipeline.parts import Outcome
from pipeline.probes import Probed, look_at, read_probes, recorder, write_probes
from pipeline.progress import progress
from stages.building import finish
from stages.workspace import Workspace

__all__ = ["run"]


def run(params: DatasetParams, workspace: Workspace, engine: Engine, *, threads: int | None = None) -> Counts:
    """Index the dataset's videos and write its tables.

    Counts are clips, and videos left out by the layout as skipped. ``threads`` None is one a core; workers of
    the engine are not needed. Raises HarcacheError, after everything is written, when too many failed.
    """
    found = scan(params.index.layout, workspace.videos, params.index)
    names = sorted({entry.video for entry in found.entries})
    probed = _probe_all(workspace, names, threads)
    results = [_clip(entry, probed[entry.video]) for entry in found.entries]
    clips = [result for result in results if isinstance(result, Clip)]
    failed = [result for result in results if isinstance(result, Outcome)]
    skipped = [Outcome(path, "skipped", fingerprint="", reason=why) for path, why in found.left_out]
    write_manifest(workspace.manifest, clips)
    write_classes(workspace.classes, found.classes)
    return finish("index", workspace, [*failed, *skipped], len(clips))


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
        ThreadPool(threads or len(os.sched_getaffinity(0))) as pool,
    ):
        again = workspace.retry_failed
        for one in pool.imap_unordered(lambda v: look_at(workspace.videos, v, known.get(v), again), names):
            probed[one.video] = one
            if one is not known.get(one.video):
                record(one)
            shown.advance(1, failed=one.probe is None)
    write_probes(memory, probed)
    return probed


def _clip(entry: Entry, probed: Probed) -> Clip | Outcome:
    try:
        return _checked_clip(entry, probed)
    except HarcacheError as error:
        return Outcome(entry.id, "failed", fingerprint="", reason=str(error))


def _checked_clip(entry: Entry, probed: Probed) -> Clip:
    found = probed.probe
    if found is None:
        raise HarcacheError(probed.reason)
    end = found.frames if entry.end is None else entry.end
    if end > found.frames:
        raise HarcacheError(
            f"the clip ends at frame {end}, but {entry.video} has {found.frames}: mend its table"
        )
    return Clip(
        id=entry.id,
        video=entry.video,
        start=entry.start,
        end=end,
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

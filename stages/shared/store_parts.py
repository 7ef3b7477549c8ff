"""What the two stages that write Zarr stores share: shards as parts, the clip index, and stale stores."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harcache.cache.array_spec import ArraySpec
from harcache.cache.clip_index import IndexEntry
from harcache.cache.errors import StaleStoreError
from harcache.cache.sampling import stored_frames
from harcache.cache.shard_writer import ShardWriter
from harcache.cache.store_paths import records_dir, shard_path
from harcache.cache.store_writer import create_store, write_index
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import partial_path, writing
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.base.progress import notice
from harcache.pipeline.clips import Clip, read_manifest
from harcache.pipeline.params import DatasetParams
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.outcomes import Counts, read_failures
from harcache.pipeline.work.parts import Outcome, Record, read_records
from harcache.pipeline.work.plan import Unit, Wanted, plan
from harcache.stages.shared.crop_table import Crop, read_crops
from harcache.stages.shared.rates import Timer
from harcache.stages.shared.units import (
    Parts,
    all_outcomes,
    build_parts,
    finish_stage,
    process_clips,
    publish_part,
)
from harcache.stages.shared.workspace import Workspace

__all__ = ["Cropped", "StoreSpec", "build_store", "crops_of", "store_parameters", "write_shards"]


def store_parameters(stage: Literal["heatmap", "rgb"], params: DatasetParams) -> dict[str, Any]:
    """Return the parameters that a store's content depends on, which are kept in it."""
    if stage == "rgb":
        return asdict(params.rgb) | asdict(params.frames)
    return asdict(params.heatmap) | asdict(params.frames) | {"persons": params.pose.max_persons}


_BEFORE = ("detect", "pose", "crop")


@dataclass(frozen=True)
class Cropped:
    """The clips that have a crop, how the others ended, and how many frames of a clip are stored."""

    clips: Sequence[Clip]
    crops: Mapping[str, Crop]
    skipped: Sequence[Outcome]
    max_frames: int | None

    @classmethod
    def read(cls, workspace: Workspace, max_frames: int | None) -> "Cropped":
        """Read the manifest and the crops of a dataset.

        Raises HarcacheError where the crop stage has not seen some of the clips, or not as they are now.
        """
        clips, crops = read_manifest(workspace.manifest), read_crops(workspace.crops)
        others = [clip.id for clip in clips if clip.id not in crops]
        listed = workspace.failures("crop")
        ends = {id: status for id, status, _ in read_failures(listed)} if listed.exists() else {}
        _check_seen([id for id in others if id not in ends], clips, crops, workspace)
        skipped = [Outcome(id, "skipped", "", f"{ends[id]} in crop") for id in others]
        return cls([clip for clip in clips if clip.id in crops], crops, skipped, max_frames)

    @property
    def token(self) -> str:
        """Another one for other crops; see `crops_of`."""
        return fingerprint([(crop.id, crop.box) for crop in self.crops.values()])

    def wanted(self, own: str, inputs: Callable[[Clip], str]) -> list[Wanted]:
        """Return what a store shall hold: ``own`` stands for its parameters, ``inputs`` for a clip's data."""
        return [
            Wanted(clip, fingerprint(own, inputs(clip), self.crops[clip.id].box), len(self.rows(clip)))
            for clip in self.clips
        ]

    def rows(self, clip: Clip) -> np.ndarray:
        """Return the frames of a clip that are stored, numbered from its start: (rows,) int64."""
        return stored_frames(clip.frames, self.max_frames)


def _check_seen(
    absent: Sequence[str], clips: Sequence[Clip], crops: Mapping[str, Crop], workspace: Workspace
) -> None:
    """Raise HarcacheError for clips that are ``absent`` from the crops, or were changed since."""
    older = f"{workspace.crops} is older than {workspace.manifest}:"
    if absent:
        raise HarcacheError(
            f"{older} it lacks {len(absent)} of {len(clips)} clips, first '{absent[0]}'; "
            f"run {_stages_before(workspace, absent)} first, or 'dvc repro'"
        )
    known = {id: crop.clip for id, crop in crops.items() if crop.clip}
    changed = [clip.id for clip in clips if known.get(clip.id, clip.fingerprint) != clip.fingerprint]
    if changed:
        raise HarcacheError(
            f"{older} {len(changed)} of {len(clips)} clips have other frames now, first '{changed[0]}'; "
            f"run {_commands(_BEFORE, workspace)} first, or 'dvc repro'"
        )


def _stages_before(workspace: Workspace, ids: Sequence[str]) -> str:
    """Return the commands that give clips a crop, from the first stage on that has not seen them all."""
    stages = list(_BEFORE)
    for folder in (workspace.detections, workspace.poses):
        if not {outcome.id for outcome in all_outcomes(read_records(folder))}.issuperset(ids):
            break
        del stages[0]
    return _commands(stages, workspace)


def _commands(stages: Iterable[str], workspace: Workspace) -> str:
    return ", ".join(f"'harcache {stage} {workspace.dataset}'" for stage in stages)


@dataclass(frozen=True)
class StoreSpec:
    """A store that a stage makes: its arrays, the rows of a shard, and the parameters that it is made by."""

    stage: str
    path: Path
    arrays: Sequence[ArraySpec]
    shard_rows: int
    parameters: Mapping[str, Any]


@lru_cache(maxsize=2)
def crops_of(path: Path, token: str) -> Mapping[str, Crop]:
    """Return the crops, read once a process and ``token``, which is another one for another table."""
    return read_crops(path)


def build_store(
    store: StoreSpec,
    cropped: Cropped,
    wanted: Sequence[Wanted],
    process: Callable[[Unit, Any], Report],
    context: Any,
    engine: Engine,
    workspace: Workspace,
) -> Counts:
    """Bring a store up to date: the missing and stale shards, then its clip index.

    A store that was made with other parameters is removed and made anew.
    """
    with writing(store.path):
        _create(store, wanted, {"dataset": workspace.dataset, "parameters": dict(store.parameters)})
    parts = Parts(store.stage, store.path, records_dir(store.path), wanted, store.shard_rows)
    records = build_parts(parts, process, context, engine, workspace.retry_failed)
    with writing(store.path):
        write_index(store.path, _entries(records, cropped))
    return finish_stage(store.stage, workspace, [*all_outcomes(records), *cropped.skipped])


def _create(store: StoreSpec, wanted: Sequence[Wanted], attributes: Mapping[str, Any]) -> None:
    # A store may lie on another disk, behind a link: the link stays.
    path = store.path.resolve()
    removed = partial_path(path)
    if removed.exists():
        shutil.rmtree(removed)
    try:
        create_store(path, store.arrays, store.shard_rows, attributes)
    except StaleStoreError as stale:
        plan(wanted, (), store.shard_rows)  # refuses shards that are too small before anything is removed
        notice(f"{store.stage}: it is made anew, since {stale}")
        # All at once: a kill half-way would leave some of the old arrays to the new store.
        path.rename(removed)
        shutil.rmtree(removed)
        create_store(path, store.arrays, store.shard_rows, attributes)


def write_shards(
    unit: Unit,
    store: Path,
    specs: Sequence[ArraySpec],
    shard_rows: int,
    timer: Timer,
    write_clip: Callable[[Clip, Sequence[ShardWriter]], int],
) -> Report:
    """Make one part of a store: a shard an array.

    ``write_clip`` appends a clip's rows to the writers and returns how many they are.
    """
    finals = [shard_path(store, spec, unit.part) for spec in specs]
    # Around all clips: inside one of them, a full disk would count as that clip's failure.
    with writing(finals[0]), ExitStack() as stack:
        writers = [
            stack.enter_context(ShardWriter(partial_path(final), spec, shard_rows))
            for final, spec in zip(finals, specs, strict=True)
        ]

        def work(clip: Clip) -> int:
            with _whole(writers):
                return write_clip(clip, writers)

        _, outcomes = process_clips(unit, work, length=int)
    # A shard of failed clips alone is no file.
    files = {partial_path(final): final for final in finals if partial_path(final).exists()}
    return publish_part(store, records_dir(store), unit, outcomes, files, timer)


@contextmanager
def _whole(writers: Sequence[ShardWriter]) -> Iterator[None]:
    """Take back the rows of a clip that fails half-way."""
    before = [writer.rows for writer in writers]
    try:
        yield
    except BaseException:
        for writer, rows in zip(writers, before, strict=True):
            writer.rewind(rows)
        raise


def _entries(records: Sequence[Record], cropped: Cropped) -> Iterator[IndexEntry]:
    """Where each clip lies, in manifest order."""
    places = {o.id: (record.part, o) for record in records for o in record.outcomes if o.status == "ok"}
    for clip in (clip for clip in cropped.clips if clip.id in places):
        part, outcome = places[clip.id]
        frames = (clip.start + cropped.rows(clip)).tolist()
        x1, y1, x2, y2 = cropped.crops[clip.id].box
        size = (clip.height, clip.width)
        yield IndexEntry(clip.id, part, outcome.start, outcome.length, frames, (x1, y1, x2, y2), size)

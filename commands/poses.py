"""Poses in and out: files of other programs for the pose stage, and a dataset's poses for other programs."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from harcache.cache.annotations import read_poses, read_positions
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import refuse_to_replace_source
from harcache.pipeline.base.progress import progress, say
from harcache.pipeline.clips import Clip, read_manifest
from harcache.pipeline.skeletons.formats import pyskl
from harcache.pipeline.skeletons.imported import ImportedPose
from harcache.pipeline.skeletons.importing import import_pose_file
from harcache.pipeline.work.outcomes import Counts, write_failures
from harcache.pipeline.work.parts import Outcome, dataset_lock, read_records
from harcache.stages.shared.units import all_outcomes, part_file
from harcache.stages.shared.workspace import Workspace

__all__ = ["export_poses", "import_poses"]

_NAMED = 5  # entries that are named in print; a file lists all


def import_poses(source: Path, out: Path, format: str = "pyskl") -> Counts:
    """Turn a file of poses into one for the pose stage's backend "import"; print the counts.

    Entries that can't be used are failed in ``out`` with the suffix ``.failures.csv``. Raises HarcacheError
    when the file is not of the ``format``, or has no entry that can be used.
    """
    refuse_to_replace_source(source, out)
    found = import_pose_file(source, out, format)
    failed = [Outcome(one.name, "failed", "", one.reason) for one in found.unusable]
    list_of_failed = out.with_suffix(".failures.csv")
    write_failures(list_of_failed, failed)
    total = found.clips + len(failed)
    say(f"{out}: {found.clips} ok, {len(failed)} failed of {total} entries, {found.splits} splits")
    for outcome in failed[:_NAMED]:
        say(f"  {outcome.id}: {outcome.reason}")
    if len(failed) > _NAMED:
        say(f"  all are in {list_of_failed}")
    return Counts(found.clips, 0, len(failed))


def export_poses(workspace: Workspace, out: Path, protocol: str | None = None) -> int:
    """Write the poses of a dataset in PYSKL's form; return the number of clips.

    Labels and splits are those of ``protocol``, or of all protocols where their labels agree; a split is
    called ``<protocol>_<split>``. Skeletons in space are written as such: keypoint (M, T, V, 3), metres.
    Raises HarcacheError where the protocols' labels differ, and for an unknown protocol.
    """
    clips = read_manifest(workspace.manifest)
    with dataset_lock(workspace.data, reading=True):
        parts = {
            outcome.id: part_file(workspace.poses, record.part)
            for record in read_records(workspace.poses)
            for outcome in all_outcomes([record])
            if outcome.status == "ok"
        }
        clips = [clip for clip in clips if clip.id in parts]
        if not clips:
            raise HarcacheError(f"{workspace.poses} has no poses of the manifest's clips; run the pose stage")
        protocols = _protocols(clips, protocol)
        splits: dict[str, list[str]] = defaultdict(list)
        for clip in clips:
            for name in protocols:
                if clip.split(name):
                    splits[f"{name}_{clip.split(name)}"].append(clip.id)
        with progress(len(clips), "poses: write") as bar:
            pyskl.write(out, _poses(clips, parts, protocols, bar.advance), splits)
    say(f"{out}: {len(clips)} clips, {len(splits)} splits")
    return len(clips)


def _protocols(clips: Sequence[Clip], protocol: str | None) -> list[str]:
    """Return the protocols to write; the first one's labels are those of all."""
    known = sorted({name for clip in clips for name, _ in (*clip.labels, *clip.splits)})
    if protocol is not None:
        if protocol not in known:
            raise HarcacheError(f"no clip has the protocol '{protocol}'; known: {', '.join(known)}")
        return [protocol]
    for clip in clips:
        if len({label for _, label in clip.labels}) > 1:
            raise HarcacheError(
                f"clip '{clip.id}' has other labels in other protocols; choose one by --protocol: "
                + ", ".join(known)
            )
    return known


def _poses(
    clips: Sequence[Clip],
    parts: Mapping[str, Path],
    protocols: Sequence[str],
    advance: Callable[[int], None],
) -> Iterator[ImportedPose]:
    for clip in clips:
        yield _pose_of(clip, parts[clip.id], protocols)
        advance(1)


def _pose_of(clip: Clip, part: Path, protocols: Sequence[str]) -> ImportedPose:
    keypoints, scores = read_poses(part, clip.id)
    label = next((label for name, label in clip.labels if name in protocols), None)
    positions = read_positions(part, clip.id)
    return ImportedPose(clip.id, keypoints, scores, positions, (clip.height, clip.width), label)

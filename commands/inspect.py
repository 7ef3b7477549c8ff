"""Inspect: what the caches hold, as lines to read, and a digest of each clip, whichever part it lies in."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.base.progress import progress
from harcache.pipeline.base.threads import thread_pool
from harcache.pipeline.work.parts import dataset_lock
from harcache.stages.shared.contents import Read, present, sources_of
from harcache.stages.shared.workspace import Workspace

__all__ = ["describe", "digests", "total"]


def describe(found: Mapping[str, Any]) -> str:
    """Return what `stages.shared.contents.info` found as lines to read."""
    lines = []
    for name, held in found["caches"].items():
        line = f"{name}: " + ", ".join(
            f"{held[key]} {key}" for key in ("clips", "rows", "parts", "bytes") if key in held
        )
        if not held.get("finished", True):
            line += ", not finished: its stage runs, or goes on when it is run again"
        if "codecs" in held:
            codecs = ", ".join(f"{array} {codec}" for array, codec in held["codecs"].items())
            line += f", 1/{held['ratio']} of {held['decoded_bytes']} decoded ({codecs})"
        lines.append(line)
    for protocol, splits in found["splits"].items():
        parts = [f"{split} {one['clips']} clips of {one['classes']} classes" for split, one in splits.items()]
        lines.append(f"{protocol}: {', '.join(parts)}")
    for stage, counts in found["stages"].items():
        lines.append(f"{stage}: {', '.join(f'{count} {status}' for status, count in counts.items())}")
    return "\n".join(lines)


def digests(workspace: Workspace) -> dict[str, str]:
    """Return a digest of what the caches hold of each clip: {clip id: BLAKE2b-128 hex}, by id.

    It covers the decoded values: boxes, keypoints with scores, and of each store the clip's arrays, frame
    numbers, box and image size. So it does not depend on parts, shards or the order of clips. Caches that are
    not there, and those in which a clip failed, are left out. A damaged file raises HarcacheError.
    """
    sources: dict[str, list[tuple[str, Read]]] = defaultdict(list)
    there = present(workspace)
    with dataset_lock(workspace.data, reading=True):
        for stage, folder in there.items():
            for id, read in sources_of(stage, folder).items():
                sources[id].append((stage, read))
        ids = sorted(sources)
        found = {}
        with progress(len(ids), "digest") as bar, thread_pool() as pool:
            for id, digest in zip(ids, pool.map(_digest, [sources[id] for id in ids]), strict=True):
                found[id] = digest
                bar.advance(1)
    return found


def total(clips: Mapping[str, str]) -> str:
    """Return one digest for those of all clips."""
    return fingerprint(sorted(clips.items()))


def _digest(sources: Sequence[tuple[str, Read]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for stage, read in sources:
        for array in read():
            digest.update(f"{stage} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()

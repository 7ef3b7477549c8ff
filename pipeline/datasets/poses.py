"""The layout "poses": a dataset that is a file of imported poses alone, for networks that see nothing else.

Its clips are the file's, with its labels and splits. The manifest names videos that are never looked for.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip
from harcache.pipeline.params import DatasetParams, ImportedPoseParams
from harcache.pipeline.skeletons.imported import ImportedPoses

__all__ = ["clips_of_poses"]

# xsub_train, train1, test: a protocol or its number, and a side.
_SPLIT = re.compile(r"(?:(.+)_)?(train|val|test)(\d*)")


def clips_of_poses(
    params: DatasetParams,
) -> tuple[list[Clip], list[tuple[str, str]], dict[str, tuple[str, ...]]]:
    """Return the clips of the file that the pose stage imports, (name, why) of what failed, and classes.

    Splits are called as PYSKL's are: ``xsub_train`` and ``xsub_val`` are protocol "xsub", ``train1``
    and ``test1`` "split1", ``train`` and ``test`` "default". What a protocol without a test side
    calls val is its test side. Other splits and clips that can't be are failed. Classes are
    called by their number. Raises HarcacheError where the poses are not imported.
    """
    if not isinstance(params.pose, ImportedPoseParams):
        raise HarcacheError(
            f"datasets.{params.name}.index.layout 'poses' takes the clips of the pose backend 'import', but "
            f"pose.backend is '{params.pose.backend}': choose another layout or backend"
        )
    source = ImportedPoses(Path(params.pose.source))
    sides, failed = _sides(source.splits)
    splits: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for protocol, of_side in sides.items():
        for side, ids in of_side.items():
            for id in dict.fromkeys(ids):
                splits[id].append((protocol, side))
    protocols = sorted(sides) or ["default"]
    clips: list[Clip] = []
    for id in sorted(source.ids):
        try:
            clips.append(_clip(id, source, protocols, splits[id]))
        except HarcacheError as error:
            failed.append((id, str(error)))
    most = max((label for clip in clips for _, label in clip.labels), default=-1)
    return clips, failed, dict.fromkeys(protocols, tuple(str(label) for label in range(most + 1)))


def _sides(
    splits: Mapping[str, Iterable[str]],
) -> tuple[dict[str, dict[str, Iterable[str]]], list[tuple[str, str]]]:
    """Return the ids by protocol and side, and the splits that name none."""
    sides: dict[str, dict[str, Iterable[str]]] = defaultdict(dict)
    failed = []
    for name, ids in splits.items():
        match = _SPLIT.fullmatch(name)
        if match is None:
            failed.append((f"split {name}", "expected a name like xsub_train, train1 or test"))
            continue
        protocol, side, number = match.groups()
        parts = [protocol] if protocol else []
        sides["_".join(parts + [f"split{number}"] * bool(number)) or "default"][side] = ids
    for of_side in sides.values():
        if "test" not in of_side and "val" in of_side:
            of_side["test"] = of_side.pop("val")
    return sides, failed


def _clip(id: str, source: ImportedPoses, protocols: Iterable[str], splits: list[tuple[str, str]]) -> Clip:
    size, label = source.image_size(id), source.label(id)
    if size is None and not source.in_space:
        raise HarcacheError("its entry has no img_shape, which the crop needs: import it with one")
    # Poses in space alone have no picture; any size will do.
    height, width = size or (1, 1)
    return Clip(
        id=id,
        video=id,
        start=0,
        end=source.frames[id],
        height=height,
        width=width,
        fps=0.0,
        size=0,
        mtime_ns=0,
        digest=source.digests[id],
        labels=() if label is None else tuple((protocol, label) for protocol in protocols),
        splits=tuple(splits),
    )

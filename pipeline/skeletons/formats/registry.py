"""The formats of pose files: each is the module of this folder with its name, and has a function ``read``.

A format gives clip by clip what it can make of a file, so that memory does not grow with the file. A new one
is a file here and a line below.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from harcache.pipeline.base.errors import did_you_mean
from harcache.pipeline.skeletons.errors import PoseFileError
from harcache.pipeline.skeletons.imported import ImportedPose

__all__ = ["FORMATS", "PoseFile", "Unusable", "read_pose_file"]

FORMATS = {
    "pyskl": "annotation pickles of PYSKL and mmaction2",
}


@dataclass(frozen=True, slots=True)
class Unusable:
    """An entry of a file that can't be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class PoseFile:
    """What a file of poses holds.

    ``entries``: how many there are to read. ``poses`` gives each once, as a clip's poses or why there are
    none. ``splits``: the ids of each; ``unusable``: what is wrong beside entries. ``id_name`` is what the
    format calls a clip's id.
    """

    entries: int
    poses: Iterator[ImportedPose | Unusable]
    splits: Mapping[str, Sequence[str]]
    unusable: tuple[Unusable, ...] = ()
    id_name: str = "id"


def read_pose_file(format: str, path: Path, advance: Callable[[int], None]) -> PoseFile:
    """Open a file of poses; ``advance`` is told of megabytes as they are read.

    Raises PoseFileError for an unknown format, and for a file that is missing, damaged or of another format.
    """
    if format not in FORMATS:
        raise PoseFileError(f"format '{format}' is unknown. {did_you_mean(format, FORMATS)}")
    found: PoseFile = import_module(f"harcache.pipeline.skeletons.formats.{format}").read(path, advance)
    return found

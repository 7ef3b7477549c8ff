"""What detect and pose read from outside the project's data, each known by a digest of its content.

DVC watches files of the project alone, but weights lie in the installation or in a folder of the user's, and
so do boxes and poses of other programs. The index stage, which DVC always runs, notes their digests in two
files that the stages depend on: when something outside changes, its stage runs again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harcache.models.pretrained.weight_files import config_digest, weights_digest
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import file_digest
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.base.tables import read_json, write_json
from harcache.pipeline.params import (
    DatasetParams,
    DetectParams,
    GivenBoxesParams,
    ImportedPoseParams,
    KinectPoseParams,
    NoDetectParams,
    PoseParams,
)
from harcache.stages.shared.workspace import Workspace

if TYPE_CHECKING:
    from harcache.pipeline.skeletons.source import PoseSource

__all__ = ["note_inputs"]

_Section = (
    DetectParams | GivenBoxesParams | NoDetectParams | PoseParams | ImportedPoseParams | KinectPoseParams
)


def note_inputs(params: DatasetParams, workspace: Workspace) -> None:
    """Write the digests of what detect and pose read from outside, where they changed.

    What is not there keeps the digest that was noted before: whoever got the results from others need not
    have it, and a stage that does need it says so itself.
    """
    sections: Mapping[str, _Section] = {"detect": params.detect, "pose": params.pose}
    for stage, section in sections.items():
        path = workspace.inputs(stage)
        before = _read(path)
        found = _digests(section, workspace.weights_dir)
        noted = {name: digest or before.get(name) for name, digest in found.items()}
        write_json(path, noted)


def _digests(section: _Section, weights_dir: Path | None) -> dict[str, str | None]:
    """Return the digest of each thing that a section of params.yaml names; None for what is not there."""
    match section:
        case DetectParams(weights=weights):
            return {f"weights {weights}": weights_digest(weights, weights_dir)}
        case PoseParams(weights=weights, config=config):
            found = {f"weights {weights}": weights_digest(weights, weights_dir)}
            # Of the other backends the network itself says how it is built.
            return found | (
                {f"config {config}": config_digest(config)} if section.backend == "mmpose" else {}
            )
        case GivenBoxesParams(source=source):
            return {f"source {source}": _file(Path(source))}
        case ImportedPoseParams(source=source) | KinectPoseParams(source=source):
            return {f"source {source}": _poses(section)}
        case NoDetectParams():
            return {}


def _file(path: Path) -> str | None:
    return file_digest(path) if path.is_file() else None


def _poses(section: ImportedPoseParams | KinectPoseParams) -> str | None:
    """Return what stands for all poses of a source, as the pose stage knows them clip by clip."""
    # They load h5py and more, which looking at videos need not wait for.
    from harcache.pipeline.skeletons.formats.kinect import KinectPoses
    from harcache.pipeline.skeletons.imported import ImportedPoses

    path = Path(section.source)
    try:
        source: PoseSource = (
            ImportedPoses(path)
            if isinstance(section, ImportedPoseParams)
            else KinectPoses(path, section.keep_missing)
        )
    except HarcacheError:  # missing or damaged: the pose stage says which
        return None
    return fingerprint(sorted(source.digests.items()))


def _read(path: Path) -> dict[str, str | None]:
    """Return what was noted before; nothing where that can't be read."""
    try:
        return read_json(path)
    except (OSError, HarcacheError):
        return {}

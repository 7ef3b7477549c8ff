"""What a place that poses are read from has in common: an imported file, a folder of Kinect's skeletons."""

from collections.abc import Mapping
from typing import Protocol

from harcache.pipeline.skeletons.imported import ImportedPose

__all__ = ["PoseSource"]


class PoseSource(Protocol):
    """Poses by clip id. ``digests`` stands for each clip's, ``frames`` is their number where it is known."""

    @property
    def digests(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def frames(self) -> Mapping[str, int]: ...  # noqa: D102
    def __contains__(self, id: object) -> bool: ...

    def leaves_out(self, id: str) -> bool:
        """Return whether the source itself says that a clip is to be skipped."""

    def absence(self, id: str) -> str | None:
        """Return why a clip has no poses, None where it has some."""

    def read(self, id: str) -> ImportedPose:
        """Read a clip's poses; HarcacheError where they are damaged."""

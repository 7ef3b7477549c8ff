"""The error of pose files, apart so that every reader can raise it."""

from harcache.pipeline.base.errors import HarcacheError

__all__ = ["PoseFileError"]


class PoseFileError(HarcacheError):
    """A pose file is missing, damaged, or not of the kind that was expected."""

"""NTU RGB+D 60: the protocols are xsub and xview."""

from pathlib import Path

from harcache.pipeline.datasets.layout import Scan
from harcache.pipeline.datasets.ntu import scan_actions
from harcache.pipeline.params import NtuIndexParams

__all__ = ["scan"]


def scan(root: Path, params: NtuIndexParams) -> Scan:
    """Return the clips that their names tell of."""
    return scan_actions(60, root, params.missing_skeletons)

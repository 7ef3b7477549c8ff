"""The layouts of datasets by name: a new one is a small file with one function and a line below.

A layout reads names and tables, never videos, so that scanning a large dataset takes seconds.
"""

from collections.abc import Callable
from pathlib import Path

from pipeline.datasets.demo import scan_demo
from pipeline.datasets.folder import scan_folder
from pipeline.datasets.layout import Entry, Scan
from pipeline.datasets.ntu import scan_ntu60, scan_ntu120
from pipeline.datasets.pku_mmd import scan_pku_mmd
from pipeline.datasets.toyota_smarthome import scan_toyota_smarthome
from pipeline.datasets.utd_mhad import scan_utd_mhad
from pipeline.errors import HarcacheError, did_you_mean
from pipeline.params import IndexParams

__all__ = ["LAYOUTS", "Entry", "Scan", "scan"]

LAYOUTS: dict[str, Callable[[Path, IndexParams], Scan]] = {
    "demo": scan_demo,
    "folder": scan_folder,
    "ntu60": scan_ntu60,
    "ntu120": scan_ntu120,
    "pku_mmd": scan_pku_mmd,
    "toyota_smarthome": scan_toyota_smarthome,
    "utd_mhad": scan_utd_mhad,
}


def scan(layout: str, root: Path, params: IndexParams) -> Scan:
    """Return the clips of the dataset under ``root`` without opening a video.

    Raises HarcacheError for an unknown layout and for a folder that is missing or gives no clips.
    """
    if layout not in LAYOUTS:
        raise HarcacheError(f"layout '{layout}' is unknown. {did_you_mean(layout, LAYOUTS)}")
    if not root.is_dir():
        raise HarcacheError(f"{root} is not a folder: put the dataset's videos there")
    found = LAYOUTS[layout](root, params)
    if not found.entries:
        first = (
            f" ({len(found.left_out)} left out, first: {' '.join(found.left_out[0])})"
            if found.left_out
            else ""
        )
        raise HarcacheError(f"{root} has no videos for the layout '{layout}'{first}: check folder and layout")
    return found

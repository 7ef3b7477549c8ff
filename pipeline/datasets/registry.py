"""The layouts of datasets by name: a new one is a small file with one function and a line below.

A layout reads names and tables, never videos, so that scanning a large dataset takes seconds.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from harcache.pipeline.base.errors import HarcacheError, did_you_mean
from harcache.pipeline.datasets.folder import scan_folder
from harcache.pipeline.datasets.layout import Entry, Scan
from harcache.pipeline.datasets.ntu import scan_ntu60, scan_ntu120
from harcache.pipeline.datasets.pku_mmd import scan_pku_mmd
from harcache.pipeline.datasets.toyota_smarthome import scan_toyota_smarthome
from harcache.pipeline.datasets.utd_mhad import scan_utd_mhad
from harcache.pipeline.params import IndexParams

__all__ = ["LAYOUTS", "Entry", "Scan", "scan"]


def _scan_demo(root: Path, params: IndexParams) -> Scan:
    # What draws the demo loads OpenCV, which other layouts need not wait for.
    from harcache.pipeline.datasets.demo import scan_demo

    return scan_demo(root, params)


LAYOUTS: dict[str, Callable[[Path, IndexParams], Scan]] = {
    "demo": _scan_demo,
    "folder": scan_folder,
    "ntu60": scan_ntu60,
    "ntu120": scan_ntu120,
    "pku_mmd": scan_pku_mmd,
    "toyota_smarthome": scan_toyota_smarthome,
    "utd_mhad": scan_utd_mhad,
}
# What each layout takes of the parameters; what it does not take would be ignored without a word.
_FOLDER = ("table", "test_ratio", "val_ratio", "seed", "test_subjects", "val_subjects", "group_pattern")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "folder": _FOLDER,
    "ntu60": ("missing_skeletons",),
    "ntu120": ("missing_skeletons",),
}


def scan(layout: str, root: Path, params: IndexParams) -> Scan:
    """Return the clips of the dataset under ``root`` without opening a video.

    Raises HarcacheError for an unknown layout and for a folder that is missing or gives no clips.
    """
    if layout not in LAYOUTS:
        raise HarcacheError(f"layout '{layout}' is unknown. {did_you_mean(layout, LAYOUTS)}")
    _check_options(layout, params)
    if not root.is_dir():
        raise HarcacheError(f"{root} is not a folder: put the dataset's videos there")
    found = LAYOUTS[layout](root, params)
    # No table could hold a name that is not UTF-8.
    left_out = tuple((path.encode(errors="backslashreplace").decode(), why) for path, why in found.left_out)
    if not found.entries:
        first = f" ({len(left_out)} left out, first: {' '.join(left_out[0])})" if left_out else ""
        raise HarcacheError(f"{root} has no videos for the layout '{layout}'{first}: check folder and layout")
    return replace(found, left_out=left_out)


def _check_options(layout: str, params: IndexParams) -> None:
    taken = ("layout", *_OPTIONS.get(layout, ()))
    for field in fields(params):
        if field.name not in taken and getattr(params, field.name) != field.default:
            raise HarcacheError(
                f"index.{field.name} does nothing in the layout '{layout}': remove it from params.yaml"
            )

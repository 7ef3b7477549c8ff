"""The layouts of datasets: each is the module of this folder with its name, and has a function ``scan``.

A layout reads names and tables, never videos, so that scanning a large dataset takes seconds. Its name and
what it takes stand in `pipeline.params.layouts`.
"""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.datasets.layout import Entry, Scan
from harcache.pipeline.params import FolderIndexParams, IndexParams, NtuIndexParams

__all__ = ["Entry", "Scan", "scan"]


def scan(root: Path, params: IndexParams | FolderIndexParams | NtuIndexParams) -> Scan:
    """Return the clips of the dataset under ``root`` without opening a video.

    Raises HarcacheError for a folder that is missing or gives no clips.
    """
    if not root.is_dir():
        raise HarcacheError(f"{root} is not a folder: put the dataset's videos there")
    # Imported when asked for: what draws the demo loads OpenCV, which others need not wait for.
    found: Scan = import_module(f"harcache.pipeline.datasets.{params.layout}").scan(root, params)
    # No table could hold a name that is not UTF-8.
    left_out = tuple((path.encode(errors="backslashreplace").decode(), why) for path, why in found.left_out)
    if not found.entries:
        first = f" ({len(left_out)} left out, first: {' '.join(left_out[0])})" if left_out else ""
        raise HarcacheError(
            f"{root} has no videos for the layout '{params.layout}'{first}: check folder and layout"
        )
    return replace(found, left_out=left_out)

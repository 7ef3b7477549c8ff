"""Boxes brought along from another program, instead of a detector's: one row a box, checked before it counts.

A CSV file has the columns ``clip,frame,x1,y1,x2,y2,score``; a JSON file is a list of objects with these keys.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harcache.cache.annotations import write_detections
from harcache.pipeline.base.errors import HarcacheError, did_you_mean
from harcache.pipeline.base.files import file_digest
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.clips import Clip, read_manifest
from harcache.pipeline.params import GivenBoxesParams
from harcache.pipeline.work.engine import Engine, Report
from harcache.pipeline.work.outcomes import Counts
from harcache.pipeline.work.plan import Unit, Wanted
from harcache.stages.shared.units import Parts, Timer, build_parts, build_table_part, ended, finish
from harcache.stages.shared.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Context", "process", "read_boxes", "run"]

_NUMBERS = ("frame", "x1", "y1", "x2", "y2", "score")


@dataclass(frozen=True)
class Context:
    """What a unit needs beside its clips; ``token`` stands for the content of the file of boxes."""

    folder: Path
    source: Path
    token: str


def run(params: GivenBoxesParams, workspace: Workspace, engine: Engine) -> Counts:
    """Give every clip its boxes; a clip without rows has nobody in it."""
    clips = read_manifest(workspace.manifest)
    source = Path(params.source)
    given = read_boxes(source)
    ids = {clip.id for clip in clips}
    unknown = [name for name in given if name not in ids]
    if unknown:
        raise HarcacheError(
            f"{source} has boxes of {len(unknown)} clips that the manifest lacks, first '{unknown[0]}'; "
            f"use the ids of {workspace.manifest}. {did_you_mean(unknown[0], ids)}"
        )
    wanted = [
        Wanted(
            clip,
            fingerprint("detect", "boxes", clip.frames, clip.height, clip.width, _rows(given, clip).tolist()),
        )
        for clip in clips
    ]
    context = Context(workspace.detections, source, file_digest(source))
    parts = Parts("detect", workspace.detections, workspace.detections, wanted)
    records = build_parts(parts, process, context, engine, workspace.retry_failed)
    return finish("detect", workspace, ended(records))


def process(unit: Unit, context: Context) -> Report:
    """Make one part: the boxes of its clips."""
    given = _read_once(context.source, context.token)
    return build_table_part(
        context.folder, unit, lambda clip: _by_frame(_rows(given, clip), clip), write_detections, Timer()
    )


def read_boxes(path: Path) -> dict[str, np.ndarray]:
    """Read a file of boxes: clip id to (n, 6) float64, frame (from 0) x1 y1 x2 y2 (pixels) score.

    Raises HarcacheError, with the first wrong row, for a file that is missing, no table or without a column,
    for what is no number, negative or empty, and for frames of a clip that are not in order.
    """
    table = _read_table(path)
    lacking = [name for name in ("clip", *_NUMBERS) if name not in table]
    if lacking:
        raise HarcacheError(f"{path} has no column '{lacking[0]}'; expected clip,{','.join(_NUMBERS)}")
    named = table["clip"].map(lambda name: isinstance(name, str | int)).to_numpy(bool)
    # Rows without one would be left out where they are grouped.
    _check(path, table, named, "no clip id")
    rows = _numbers(table)
    frame, x1, y1, x2, y2, score = rows.T
    _check(path, table, np.isfinite(rows).all(axis=1), "a value that is no number")
    _check(path, table, (frame >= 0) & (frame % 1 == 0), "a frame that is no whole number from 0 on")
    _check(path, table, (x1 >= 0) & (y1 >= 0), "a negative coordinate")
    _check(path, table, (x1 < x2) & (y1 < y2), "an empty box (expected x1 < x2 and y1 < y2)")
    _check(path, table, (score >= 0) & (score <= 1), "a score outside 0 to 1")
    steps = table.assign(frame=frame).groupby("clip")["frame"].diff()
    _check(path, table, ~(steps.to_numpy() < 0), "a frame before that of an earlier row of its clip")
    groups = table.groupby("clip", sort=False).indices
    return {str(name): rows[np.sort(where)] for name, where in groups.items()}


def _read_table(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        if path.suffix == ".json":
            return pd.DataFrame.from_records(json.loads(path.read_text(encoding="utf-8")))
        # A clip may be called NA.
        empty = {name: ["", "nan", "NaN"] for name in _NUMBERS}
        return pd.read_csv(path, dtype={"clip": str}, keep_default_na=False, na_values=empty)
    except OSError as error:
        raise HarcacheError(
            f"{path} can't be read ({error.strerror}); detect.source in params.yaml names a file of boxes"
        ) from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise HarcacheError(
            f"{path} is no table of boxes ({' '.join(str(error).split())}); expected CSV, or a JSON list of "
            f"objects, with clip,{','.join(_NUMBERS)}"
        ) from error


def _numbers(table: "pd.DataFrame") -> np.ndarray:
    """(rows, 6) float64; NaN for what is no number."""
    import pandas as pd

    columns = [pd.to_numeric(table[name], errors="coerce") for name in _NUMBERS]
    return np.stack([column.to_numpy(np.float64, na_value=np.nan) for column in columns], axis=1)


def _check(path: Path, table: "pd.DataFrame", good: np.ndarray, problem: str) -> None:
    if not good.all():
        row = int(np.argmin(good))
        found = ", ".join(f"{name} {table[name].iloc[row]}" for name in ("clip", *_NUMBERS))
        raise HarcacheError(f"{path}: row {row + 1} ({found}) has {problem}; correct the file")


@lru_cache(maxsize=1)
def _read_once(path: Path, token: str) -> Mapping[str, np.ndarray]:
    return read_boxes(path)


def _rows(given: Mapping[str, np.ndarray], clip: Clip) -> np.ndarray:
    return given.get(clip.id, np.empty((0, 6)))


def _by_frame(rows: np.ndarray, clip: Clip) -> list[np.ndarray]:
    """A frame's (n, 5) float32, best score first."""
    if len(rows) and rows[-1, 0] >= clip.frames:
        raise HarcacheError(f"its boxes go up to frame {rows[-1, 0]:.0f}, but it has {clip.frames} frames")
    outside = rows[(rows[:, 3] > clip.width) | (rows[:, 4] > clip.height)]
    if len(outside):
        raise HarcacheError(
            f"its box {outside[0, 1:5].tolist()} in frame {outside[0, 0]:.0f} leaves the image, which has "
            f"{clip.width}x{clip.height} pixels; cut the boxes at its border"
        )
    rows = rows[np.lexsort((-rows[:, 5], rows[:, 0]))]
    starts = np.searchsorted(rows[:, 0], np.arange(1, clip.frames))
    return np.split(rows[:, 1:].astype(np.float32), starts)

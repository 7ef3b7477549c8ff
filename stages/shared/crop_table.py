"""``crops.csv``: the box of each clip, and what was measured of its persons and poses."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.tables import read_table, write_table
from harcache.stages.shared.quality import FLAGS, Quality

__all__ = ["WHOLE_IMAGE", "Crop", "flag_counts", "read_crops", "write_crops"]

WHOLE_IMAGE = "whole image"
_COLUMNS = ("id", "x1", "y1", "x2", "y2", "source", "fingerprint")
_OF_CLIP = "clip"
# Tables of before have none of these, or not all; their clips are measured again.
_QUALITY = ("persons", "confidence", "outside", "changes", "seen", "dropped", "flags")


@dataclass(frozen=True, slots=True)
class Crop:
    """The crop of a clip: x1 y1 x2 y2 in pixels of the source frame, x2 and y2 excluded.

    ``source`` is "persons", or "whole image: ..." with the reason where no box could be made. ``quality`` is
    None in a table that was written before there was any. ``clip`` is the fingerprint of the clip that was
    cropped, empty in a table of before.
    """

    id: str
    box: tuple[int, int, int, int]
    source: str
    fingerprint: str
    quality: Quality | None = None
    clip: str = ""

    @property
    def flags(self) -> tuple[str, ...]:
        """Return what may be wrong with the clip, of `stages.shared.quality.FLAGS`."""
        return self.quality.flags(self.source.startswith(WHOLE_IMAGE)) if self.quality else ()

    def with_dropped(self, count: int | None) -> "Crop":
        """Return the crop with what the pose stage noted of the persons that it dropped."""
        return replace(self, quality=replace(self.quality, dropped=count)) if self.quality else self


def read_crops(path: Path) -> dict[str, Crop]:
    """Read ``crops.csv`` as {clip id: crop}; raises HarcacheError, with the line, where it can't be read."""
    if not path.is_file():
        raise HarcacheError(f"{path} is missing; run the crop stage, which writes it")
    found = read_table(path, _crop_from_row, _COLUMNS, remedy="; delete it and run the crop stage again")
    return {crop.id: crop for crop in found.rows}


def _crop_from_row(row: Mapping[str, str]) -> Crop:
    x1, y1, x2, y2 = (int(row[name]) for name in ("x1", "y1", "x2", "y2"))
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"the box {x1} {y1} {x2} {y2} is empty")
    quality = None
    if row.get("persons"):
        confidence, outside = float(row["confidence"]), float(row["outside"])
        seen = float(row["seen"]) if "seen" in row else None
        dropped = int(row["dropped"]) if row.get("dropped") else None
        quality = Quality(int(row["persons"]), confidence, outside, int(row["changes"]), seen, dropped)
    box = x1, y1, x2, y2
    return Crop(row["id"], box, row["source"], row["fingerprint"], quality, row.get(_OF_CLIP, ""))


def write_crops(path: Path, crops: Sequence[Crop]) -> None:
    """Write ``crops.csv``, only when that changes it."""
    write_table(path, (*_COLUMNS, _OF_CLIP, *_QUALITY), map(_to_row, crops))


def _to_row(crop: Crop) -> tuple[Any, ...]:
    measured = asdict(crop.quality).values() if crop.quality else [None] * (len(_QUALITY) - 1)
    own = (crop.id, *crop.box, crop.source, crop.fingerprint, crop.clip)
    return (*own, *measured, " ".join(crop.flags))


def flag_counts(crops: Iterable[Crop]) -> dict[str, int]:
    """Return how many clips have each of the quality flags."""
    found = Counter(flag for crop in crops for flag in crop.flags)
    return {flag: found[flag] for flag in FLAGS}

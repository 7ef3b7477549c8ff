"""Toyota Smarthome, trimmed: ``Cook.Cleandishes_p02_r00_v02_c03.mp4`` tells everything.

The cross-view protocols count fewer activities than the cross-subject one and number them anew.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from harcache.pipeline.datasets.layout import Entry, Scan, scan_names
from harcache.pipeline.params import IndexParams

__all__ = ["CLASSES", "scan"]

_NAME = re.compile(r"([A-Za-z.]+)_p(\d{2})_r(\d{2})_v(\d{2})_c(\d{2})", re.ASCII)

_CS = """
Cook.Cleandishes Cook.Cleanup Cook.Cut Cook.Stir Cook.Usestove Cutbread Drink.Frombottle Drink.Fromcan
Drink.Fromcup Drink.Fromglass Eat.Attable Eat.Snack Enter Getup Laydown Leave Makecoffee.Pourgrains
Makecoffee.Pourwater Maketea.Boilwater Maketea.Insertteabag Pour.Frombottle Pour.Fromcan Pour.Fromkettle
Readbook Sitdown Takepills Uselaptop Usetablet Usetelephone Walk WatchTV
"""
_CV = """
Cutbread Drink.Frombottle Drink.Fromcan Drink.Fromcup Drink.Fromglass Eat.Attable Eat.Snack Enter Getup Leave
Pour.Frombottle Pour.Fromcan Readbook Sitdown Takepills Uselaptop Usetablet Usetelephone Walk
"""
# The order is the numbering of the lists released with EPAM-Net.
CLASSES: Mapping[str, tuple[str, ...]] = {
    "cs": tuple(_CS.split()),
    "cv1": tuple(_CV.split()),
    "cv2": tuple(_CV.split()),
}
_NUMBERS = {protocol: {name: n for n, name in enumerate(names)} for protocol, names in CLASSES.items()}

# Das et al. 2019: subjects of cs, cameras of cv1 and cv2.
_SPLITS: Mapping[str, Mapping[int, str]] = {
    "cs": {
        **dict.fromkeys((3, 4, 6, 7, 9, 12, 13, 15, 17), "train"),
        **dict.fromkeys((19, 25), "val"),
        **dict.fromkeys((2, 10, 11, 14, 16, 18, 20), "test"),
    },
    "cv1": {1: "train", 5: "val", 2: "test"},
    "cv2": {**dict.fromkeys((1, 3, 4, 6, 7), "train"), 5: "val", 2: "test"},
}


def scan(root: Path, params: IndexParams) -> Scan:
    """Return the clips with the labels and splits of the protocols cs, cv1 and cv2.

    A clip has a label in each protocol that counts its activity, and a split where its subject or camera is
    on a side. An activity of no protocol is left out.
    """
    return scan_names(root, _entry_of, CLASSES)


def _entry_of(video: str) -> Entry | str:
    stem = PurePosixPath(video).stem
    match = _NAME.fullmatch(stem)
    if match is None:
        return "name is not like Cook.Cleandishes_p02_r00_v02_c03.mp4"
    activity = match[1]
    subject, repetition, _, camera = map(int, match.groups()[1:])
    labels = tuple((p, numbers[activity]) for p, numbers in _NUMBERS.items() if activity in numbers)
    if not labels:
        return f"activity {activity} is in no protocol"
    sides = ((p, _SPLITS[p].get(subject if p == "cs" else camera)) for p, _ in labels)
    return Entry(
        id=stem,
        video=video,
        subject=subject,
        camera=camera,
        repetition=repetition,
        labels=labels,
        splits=tuple((protocol, side) for protocol, side in sides if side),
    )

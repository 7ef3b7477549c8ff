"""UTD-MHAD: ``a1_s1_t1_color.avi`` tells action, subject and trial."""

import re
from pathlib import Path, PurePosixPath

from harcache.pipeline.datasets.layout import Entry, Scan, scan_names
from harcache.pipeline.params import IndexParams

__all__ = ["CLASSES", "PROTOCOL", "scan"]

PROTOCOL = "xsub"
_NAME = re.compile(r"(a([1-9]|1\d|2[0-7])_s([1-8])_t([1-4]))_color", re.ASCII)

_CLASS_NAMES = """
swipe left, swipe right, wave, clap, throw, cross arms, basketball shot, draw x, draw circle clockwise,
draw circle counter-clockwise, draw triangle, bowling, boxing, baseball swing, tennis swing, arm curl,
tennis serve, push, knock on door, catch, pick up and throw, jogging, walking, sit to stand, stand to sit,
lunge, squat
"""
# Actions a1 to a27, so a label is an action's number less one.
CLASSES = tuple(name.strip() for name in _CLASS_NAMES.split(","))


def scan(root: Path, params: IndexParams) -> Scan:
    """Return the clips; odd subjects train and even ones test, as Chen et al. 2015 have it."""
    return scan_names(root, _entry_of, {PROTOCOL: CLASSES})


def _entry_of(video: str) -> Entry | str:
    match = _NAME.fullmatch(PurePosixPath(video).stem)
    if match is None:
        return "name is not like a1_s1_t1_color.avi, with actions to 27, subjects to 8 and trials to 4"
    action, subject, trial = map(int, match.groups()[1:])
    return Entry(
        id=match[1],
        video=video,
        subject=subject,
        repetition=trial,
        labels=((PROTOCOL, action - 1),),
        splits=((PROTOCOL, "train" if subject % 2 else "test"),),
    )

"""NTU RGB+D, layouts ntu60 and ntu120: everything is in the file name, ``S001C001P001R001A001_rgb.avi``.

Videos may lie in any folders under the root, so the archives can be unpacked as they come.
"""

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path, PurePosixPath

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.datasets.layout import Entry, Scan, scan_names

__all__ = ["CLASSES", "TRAIN_PERFORMERS", "parse_ntu_name", "scan_actions"]

_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})(?:_rgb)?", re.ASCII)
_SAMPLE = re.compile(r"\bS\d{3}C\d{3}P\d{3}R\d{3}A\d{3}\b", re.ASCII)
_SETUPS = {60: 17, 120: 32}
_SECOND_PROTOCOL = {60: "xview", 120: "xset"}

# The cross-subject protocols of Shahroudy et al. 2016 (60 actions) and Liu et al. 2019 (120).
_TRAIN_60 = frozenset({1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38})
TRAIN_PERFORMERS = {
    60: _TRAIN_60,
    120: _TRAIN_60
    | {45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89}
    | {91, 92, 93, 94, 95, 97, 98, 100, 103},
}
_TRAIN_CAMERAS = frozenset({2, 3})

_CLASS_NAMES = """
drink water, eat meal, brush teeth, brush hair, drop, pick up, throw, sit down, stand up, clapping,
reading, writing, tear up paper, put on jacket, take off jacket, put on a shoe, take off a shoe,
put on glasses, take off glasses, put on a hat, take off a hat, cheer up, hand waving, kicking something,
reach into pocket, hopping, jump up, phone call, play with phone, type on a keyboard,
point to something, taking a selfie, check time, rub two hands, nod head, shake head, wipe face, salute,
put palms together, cross hands in front, sneeze or cough, staggering, falling down, headache, chest pain,
back pain, neck pain, nausea, fan self, punch or slap, kicking, pushing, pat on back, point finger,
hugging, giving object, touch pocket, shaking hands, walking towards, walking apart, put on headphone,
take off headphone, shoot at basket, bounce ball, tennis bat swing, juggle table tennis ball, hush,
flick hair, thumb up, thumb down, make OK sign, make victory sign, staple book, counting money,
cutting nails, cutting paper, snap fingers, open bottle, sniff, squat down, toss a coin, fold paper,
ball up paper, play magic cube, apply cream on face, apply cream on hand, put on bag, take off bag,
put object into bag, take object out of bag, open a box, move heavy objects, shake fist, throw up cap,
capitulate, cross arms, arm circles, arm swings, run on the spot, butt kicks, cross toe touch, side kick,
yawn, stretch oneself, blow nose, hit with object, wield knife, knock over, grab stuff, shoot with gun,
step on foot, high-five, cheers and drink, carry object, take a photo, follow, whisper, exchange things,
support somebody, rock-paper-scissors
"""
# Actions A001 to A120, so a label is an action's number less one.
CLASSES = tuple(name.strip() for name in _CLASS_NAMES.split(","))


def parse_ntu_name(stem: str) -> tuple[int, int, int, int, int] | None:
    """Return (setup, camera, performer, replication, action), each from 1, or None for another name."""
    match = _NAME.fullmatch(stem)
    if match is None or "000" in match.groups():
        return None
    setup, camera, performer, replication, action = map(int, match.groups())
    return setup, camera, performer, replication, action


def scan_actions(actions: int, root: Path, missing_skeletons: str | None) -> Scan:
    """Return the clips of the dataset of 60 or 120 ``actions`` that the list of missing ones doesn't name."""
    classes = {protocol: CLASSES[:actions] for protocol in ("xsub", _SECOND_PROTOCOL[actions])}
    missing = _read_missing(root / missing_skeletons) if missing_skeletons else frozenset()
    return scan_names(root, partial(_entry_of, actions=actions, missing=missing), classes)


def _read_missing(path: Path) -> frozenset[str]:
    """Read the names of samples in a list such as the dataset's authors publish; other words don't count."""
    try:
        found = frozenset(_SAMPLE.findall(path.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError) as error:
        raise HarcacheError(
            f"{path} can't be read ({error}): expected the list of samples with missing skeletons there, or "
            "no 'missing_skeletons' in params.yaml"
        ) from error
    if not found:
        raise HarcacheError(f"{path} names no sample: expected names like S001C002P005R002A008, one a line")
    return found


def _entry_of(video: str, actions: int, missing: Collection[str]) -> Entry | str:
    """Return the clip that a video's name tells, or why it is not of NTU RGB+D with 60 or 120 actions."""
    stem = PurePosixPath(video).stem
    numbers = parse_ntu_name(stem)
    if numbers is None:
        return "name is not like S001C001P001R001A001_rgb.avi"
    setup, camera, performer, replication, action = numbers
    if setup > _SETUPS[actions] or action > actions:
        return f"setup {setup}, action {action} is not in NTU RGB+D {actions}"
    if stem.removesuffix("_rgb") in missing:
        return "is in the list of missing skeletons"
    second = _SECOND_PROTOCOL[actions]
    in_train = {
        "xsub": performer in TRAIN_PERFORMERS[actions],
        second: camera in _TRAIN_CAMERAS if second == "xview" else setup % 2 == 0,
    }
    return Entry(
        id=stem.removesuffix("_rgb"),
        video=video,
        subject=performer,
        camera=camera,
        setup=setup,
        repetition=replication,
        labels=tuple((protocol, action - 1) for protocol in in_train),
        splits=tuple((protocol, "train" if train else "test") for protocol, train in in_train.items()),
    )

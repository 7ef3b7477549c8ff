"""The demo: a dataset drawn from a seed, named as NTU RGB+D is, so that NTU's protocols apply to it.

Its truth (boxes and keypoints) lies beside the videos for the evaluation; no other stage reads it.
"""

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import partial_path, write_if_changed
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.base.progress import progress
from harcache.pipeline.datasets.drawn_figures import motion
from harcache.pipeline.datasets.drawn_figures.backgrounds import make_room
from harcache.pipeline.datasets.drawn_figures.figures import render
from harcache.pipeline.datasets.drawn_figures.performers import make_look
from harcache.pipeline.datasets.drawn_figures.scenes import Scene, make_scene, scene_truth
from harcache.pipeline.datasets.layout import Scan
from harcache.pipeline.datasets.ntu import TRAIN_PERFORMERS, scan_actions
from harcache.pipeline.datasets.truth import TRUTH
from harcache.pipeline.params import IndexParams
from harcache.pipeline.video.writing import write_video

__all__ = ["DemoSpec", "generate_demo", "holds_other_demo", "object_pairs", "scan"]

_FPS = 30
_SHORTEST, _LONGEST = 28, 60  # frames; many have fewer than the 48 of the paper's samples
_SIZES = ((240, 320), (288, 352), (272, 480), (240, 426), (320, 320))  # height, width
_SETUPS = 3  # rooms before each camera; all actions are in all of them, so a room tells nothing
_RECORD = "demo.json"
_FORMAT = 1


@dataclass(frozen=True)
class DemoSpec:
    """What the demo holds: every action by every performer before every camera, ``repetitions`` times."""

    seed: int = 0
    # NTU's X-Sub tests 3, 6 and 7 of them.
    performers: tuple[int, ...] = (*range(1, 10), *range(13, 17))
    cameras: int = 3
    repetitions: int = 1
    actions: tuple[int, ...] = tuple(motion.ACTIONS)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.actions) - set(motion.ACTIONS))
        if unknown or not self.actions:
            raise HarcacheError(
                f"the demo has no actions {unknown}: expected some of 1 to {len(motion.ACTIONS)}"
            )
        if not 1 <= self.cameras <= 3 or not self.performers or min(self.performers) < 1:
            raise HarcacheError(
                f"the demo was asked for performers {self.performers} and {self.cameras} cameras: "
                "expected numbers from 1 and 1 to 3"
            )


def scan(root: Path, params: IndexParams) -> Scan:
    """Read the names as NTU's; the labels count the demo's own actions."""
    found = scan_actions(60, root, None)
    ours = tuple(entry for entry in found.entries if dict(entry.labels)["xsub"] < len(motion.ACTIONS))
    others = tuple((e.video, "action is not in the demo") for e in found.entries if e not in ours)
    names = tuple(motion.ACTIONS.values())
    return replace(
        found, entries=ours, classes=dict.fromkeys(found.classes, names), left_out=found.left_out + others
    )


def object_pairs() -> tuple[tuple[int, int], ...]:
    """Return the pairs of labels (from 0) whose motion is the same and whose held object differs."""
    held = sorted(motion.HELD)
    return tuple((a - 1, b - 1) for a, b in zip(held[::2], held[1::2], strict=True))


def generate_demo(root: Path, spec: DemoSpec, workers: int | None = None) -> int:
    """Draw and encode the videos and the truth into ``root``; return how many videos were made.

    What an earlier call with the same ``spec`` made stays; one with another is an error. The same spec gives
    the same frames everywhere, and the same bytes where the encoder's build is the same.
    """
    root.mkdir(parents=True, exist_ok=True)
    record = _record(spec)
    _check_record(root / _RECORD, record)
    # Before any video: what an interrupted call left must not be taken for another demo's.
    write_if_changed(root / _RECORD, record.encode())
    clips = list(_clips(spec))
    missing = [clip for clip in clips if not _video_path(root, clip).exists()]
    if missing:
        # Fresh processes: a fork after other libraries started threads may hang.
        fresh = multiprocessing.get_context("spawn")
        with (
            progress(len(clips), "demo", done=len(clips) - len(missing)) as bar,
            ProcessPoolExecutor(workers or os.cpu_count(), fresh) as pool,
        ):
            for _ in pool.map(partial(_encode, root, spec), missing):
                bar.advance()
    if missing or not (root / TRUTH).exists():
        _write_truth(root / TRUTH, spec, clips)
    return len(missing)


def holds_other_demo(root: Path, spec: DemoSpec) -> bool:
    """Tell whether ``root`` holds videos of another demo than that of ``spec``."""
    path = root / _RECORD
    return path.exists() and path.read_text() != _record(spec)


@dataclass(frozen=True)
class _DemoClip:
    setup: int
    camera: int
    performer: int
    repetition: int
    action: int

    @property
    def id(self) -> str:
        return f"S{self.setup:03}C{self.camera:03}P{self.performer:03}R{self.repetition:03}A{self.action:03}"


def _clips(spec: DemoSpec) -> Iterator[_DemoClip]:
    cameras, repetitions = range(1, spec.cameras + 1), range(1, spec.repetitions + 1)
    for performer, camera, repetition, action in product(spec.performers, cameras, repetitions, spec.actions):
        yield _DemoClip(1 + performer % _SETUPS, camera, performer, repetition, action)


def _record(spec: DemoSpec) -> str:
    return json.dumps({"format": _FORMAT, **asdict(spec)}, sort_keys=True, indent=1) + "\n"


def _check_record(path: Path, record: str) -> None:
    if path.exists() and path.read_text() != record:
        raise HarcacheError(
            f"{path.parent} holds a demo made with other settings ({fingerprint(path.read_text())[:8]} where "
            f"{fingerprint(record)[:8]} was expected): give another folder or remove this one"
        )


def _video_path(root: Path, clip: _DemoClip) -> Path:
    return root / f"{clip.id}_rgb.mp4"


def _scene(spec: DemoSpec, clip: _DemoClip) -> Scene:
    # The actions of an object pair share the state that makes the motion, and with it motion and length.
    held = sorted(motion.HELD)
    moves_as = held[held.index(clip.action) // 2 * 2] if clip.action in motion.HELD else clip.action
    take = (spec.seed, clip.setup, clip.camera, clip.performer, clip.repetition)
    motion_rng = np.random.default_rng((*take, moves_as, 0))
    view_rng = np.random.default_rng((*take, clip.action, 1))
    num_frames = int(motion_rng.integers(_SHORTEST, _LONGEST + 1))
    performers = [clip.performer]
    if clip.action in motion.TWO_PERSONS:
        performers.append(_partner(spec, clip.performer))
    looks = tuple(make_look(np.random.default_rng((spec.seed, p, 2))) for p in performers)
    room_rng = np.random.default_rng((spec.seed, clip.setup, clip.camera, 3))
    room = make_room(_SIZES[room_rng.integers(len(_SIZES))], room_rng)
    return make_scene(clip.action, clip.camera, looks, num_frames, room, motion_rng, view_rng)


def _partner(spec: DemoSpec, performer: int) -> int:
    """The next performer on the same side of X-Sub, so that nobody of the test is seen in training."""
    train = TRAIN_PERFORMERS[60]
    same = [p for p in spec.performers if (p in train) == (performer in train)]
    return same[(same.index(performer) + 1) % len(same)]


def _encode(root: Path, spec: DemoSpec, clip: _DemoClip) -> None:
    cv2.setNumThreads(1)
    scene = _scene(spec, clip)
    frames = (render(scene, t) for t in range(scene.joints.shape[1]))
    # MPEG-4 part 2, as NTU's own files: libx264 does not give the same bytes every time.
    write_video(_video_path(root, clip), frames, _FPS, "mpeg4", 3)


def _write_truth(path: Path, spec: DemoSpec, clips: list[_DemoClip]) -> None:
    arrays: dict[str, Any] = {}
    for clip in clips:
        arrays[f"{clip.id}/boxes"], arrays[f"{clip.id}/keypoints"] = scene_truth(_scene(spec, clip))
    temporary = partial_path(path)
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(path)

"""What probing each video gave, kept by size and modification time, so that an unchanged video is read once.

One JSON line a video, added as it comes: an interrupted scan of a terabyte loses at most the videos in work.
It is only a memory: a line that can't be read is dropped and its video is probed again.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from harcache.pipeline.base.files import write_if_changed
from harcache.pipeline.base.tables import parse_json
from harcache.pipeline.video.frames import Probe, VideoError, probe

__all__ = ["Probed", "look_at", "read_probes", "recorder", "write_probes"]


@dataclass(frozen=True, slots=True)
class Probed:
    """A video's path under its root, what was found there, or why nothing could be."""

    video: str
    size: int
    mtime_ns: int
    probe: Probe | None
    reason: str = ""


_FIELDS = tuple(field.name for field in fields(Probed))
_PROBE_FIELDS = tuple(field.name for field in fields(Probe))
_JSON = json.JSONEncoder(separators=(",", ":"))


def look_at(root: Path, video: str, known: Probed | None, retry_failed: bool = False) -> Probed:
    """Probe the video unless ``known`` was made from the same size and modification time."""
    path = root / video
    stat = path.stat() if path.is_file() else None
    size, mtime_ns = (stat.st_size, stat.st_mtime_ns) if stat else (-1, -1)
    if known and (known.size, known.mtime_ns) == (size, mtime_ns) and (known.probe or not retry_failed):
        return known
    try:
        return Probed(video, size, mtime_ns, probe(path))
    except VideoError as error:
        # What the operating system refused, it may allow next time: such a failure never counts as known.
        refused = isinstance(error.__cause__, OSError)
        reason = str(error).replace(f"{root}/", "")
        return Probed(video, -1 if refused else size, mtime_ns, None, reason)


def read_probes(path: Path) -> dict[str, Probed]:
    """Return what is known by video; nothing for a missing file."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {probed.video: probed for line in lines if (probed := _from_line(line)) is not None}


def write_probes(path: Path, probed: Mapping[str, Probed]) -> bool:
    """Replace the file by ``probed``, sorted by video, atomically; return whether that changed it."""
    return write_if_changed(path, "".join(_to_line(probed[video]) for video in sorted(probed)).encode())


@contextmanager
def recorder(path: Path) -> Iterator[Callable[[Probed], None]]:
    """Give a function that adds one result to the end of the file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", buffering=1) as file:
        yield lambda probed: print(_to_line(probed), end="", file=file)


def _to_line(probed: Probed) -> str:
    # dataclasses.asdict takes five times as long, which a second look at thousands of videos would feel.
    found = probed.probe and {name: getattr(probed.probe, name) for name in _PROBE_FIELDS}
    return _JSON.encode({name: getattr(probed, name) for name in _FIELDS} | {"probe": found}) + "\n"


def _from_line(line: str) -> Probed | None:
    try:
        values = parse_json(line)
        found = values.pop("probe")
        hash(values["video"])
        return Probed(**values, probe=found and Probe(**found))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None

"""Parts: the files that one unit of work makes, and the record that says they are whole.

A part counts only with its record, which is written last; a crash at any moment leaves either the whole
part or none. One process works on a dataset at a time, so stray temporary files need no names of their own.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TextIO

from harcache.pipeline.base.errors import HarcacheError, refuse_newer
from harcache.pipeline.base.files import commit_file, file_digest, flush, write_atomically
from harcache.pipeline.base.garbage import collection_paused
from harcache.pipeline.base.tables import json_text, parse_json
from harcache.pipeline.base.text import shown

__all__ = [
    "Outcome",
    "Record",
    "dataset_lock",
    "discard_part",
    "file_problem",
    "publish",
    "read_record",
    "read_records",
    "record_path",
    "remove_part",
    "sound_records",
    "verify_files",
]

_FORMAT = 2
_SEAL = ',\n "digest": "'


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a clip ended, the rows it takes in its part (``length`` from ``start``), and its inputs' hash.

    "repaired" is a note on a clip that counts as ok: what was mended in what came with it.
    """

    id: str
    status: Literal["ok", "skipped", "failed", "repaired"]
    fingerprint: str
    reason: str = ""
    start: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """What a published part holds. ``files`` are (name in the folder, bytes, BLAKE2b-128 hex).

    ``rules``: the version of the stage's rules that the part was made by, 0 where it has none. ``notes``: (id
    of a clip, a number), which the stage explains.
    As text it is JSON whose last key, ``digest``, is the BLAKE2b-128 of all text before that key's comma.
    """

    part: int
    outcomes: tuple[Outcome, ...]
    files: tuple[tuple[str, int, str], ...]
    format: int = _FORMAT
    rules: int = 0
    notes: tuple[tuple[str, int], ...] = ()

    def to_json(self) -> str:
        """Return the record as text, the same for the same record."""
        values = asdict(self)
        # Absent where there is nothing to say, as in the records of versions that had neither.
        for name in ("rules", "notes"):
            if not values[name]:
                del values[name]
        return _sealed(json_text(values).removesuffix("\n}"))

    @classmethod
    def from_json(cls, text: str, where: object = "the record") -> "Record":
        """Read what `to_json` gave; anything else raises ValueError, KeyError or TypeError.

        A later format raises NewerFormatError, which names ``where`` the text stands.
        """
        values = parse_json(text)
        if values["format"] != _FORMAT:
            refuse_newer(values["format"], _FORMAT, where)
            raise ValueError(f"format {shown(values['format'])}: this version reads {_FORMAT}")
        if text != _sealed(text.rpartition(_SEAL)[0]):
            raise ValueError("it does not match its digest")
        files = tuple((str(name), int(size), str(digest)) for name, size, digest in values["files"])
        for name, _, _ in files:
            # The files of a part are removed with it.
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"file '{name}' may lie outside of the cache")
        outcomes = tuple(Outcome(**one) for one in values["outcomes"])
        notes = tuple((str(id), int(number)) for id, number in values.get("notes", ()))
        return cls(int(values["part"]), outcomes, files, rules=int(values.get("rules", 0)), notes=notes)


def publish(
    folder: Path,
    record_dir: Path,
    part: int,
    outcomes: Sequence[Outcome],
    files: Mapping[Path, Path],
    rules: int = 0,
    notes: Sequence[tuple[str, int]] = (),
) -> Record:
    """Make ``files`` (temporary: final, both in ``folder``) the part ``part`` and return its record.

    ``rules`` and ``notes`` are those of `Record`.
    An older part of that number is removed first, record before files, so that at no moment does a record
    stand for files it did not see.
    """
    for temporary in files:
        if not temporary.is_file():
            raise HarcacheError(f"part {part}: {temporary} is missing; the stage did not write it")
    described = tuple((final.relative_to(folder).as_posix(), *_describe(tmp)) for tmp, final in files.items())
    record = Record(part, tuple(outcomes), described, rules=rules, notes=tuple(notes))
    if record_path(record_dir, part).exists():
        remove_part(folder, record_dir, part)
    for temporary, final in files.items():
        final.parent.mkdir(parents=True, exist_ok=True)
        commit_file(temporary, final)
    for parent in {final.parent for final in files.values()}:
        flush(parent)
    write_atomically(record_path(record_dir, part), record.to_json().encode())
    return record


def read_records(record_dir: Path) -> list[Record]:
    """Return all records by part number; none for a missing folder.

    A record that can't be read raises HarcacheError: a crash can't leave one, so it is not ours or damaged.
    """
    paths = sorted(record_dir.glob("part-*.json")) if record_dir.is_dir() else []
    return sorted((read_record(path) for path in paths), key=lambda record: record.part)


@collection_paused()
def sound_records(folder: Path, record_dir: Path) -> list[Record]:
    """Return the records whose files are there, and remove the other parts, so that they are made again."""
    sound = []
    for record in read_records(record_dir):
        if verify_files(folder, record):
            sound.append(record)
        else:
            remove_part(folder, record_dir, record.part)
    return sound


def verify_files(folder: Path, record: Record, *, checksums: bool = False) -> bool:
    """Return whether every file of the record is there with its size, and if asked with its digest."""
    return not any(
        file_problem(folder / name, size, digest if checksums else None)
        for name, size, digest in record.files
    )


def file_problem(path: Path, size: int, digest: str | None = None) -> str | None:
    """Return how a file differs from what its record says, or None; with ``digest`` it is read whole."""
    if not path.is_file():
        return "is missing"
    found = path.stat().st_size
    if found != size:
        return f"has {found} bytes, its record says {size}"
    try:
        return "does not match its record's digest" if digest and file_digest(path) != digest else None
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def remove_part(folder: Path, record_dir: Path, part: int) -> None:
    """Remove the part's record, then its files; a part without a record raises HarcacheError."""
    path = record_path(record_dir, part)
    if not path.is_file():
        raise HarcacheError(f"part {part} has no record {path}; expected a published part")
    discard_part(record_dir, part, [folder / name for name, _, _ in read_record(path).files])


def discard_part(record_dir: Path, part: int, files: Iterable[Path]) -> None:
    """Remove the part's record, whatever state it is in or if it is gone, then ``files``."""
    path = record_path(record_dir, part)
    if path.exists():
        path.unlink()
        flush(record_dir)
    for path in files:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def dataset_lock(folder: Path, *, reading: bool = False) -> Iterator[None]:
    """Let one process at a time work in ``folder``; a second gets a HarcacheError that names the first.

    The kernel holds the lock, so it ends with its process, however that ends. Who is only ``reading`` does
    without where nothing can be written, as in a cache that is mounted read-only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((folder / ".lock").open("a+"))
        except OSError as error:
            if not reading or error.errno not in (errno.EROFS, errno.EACCES):
                raise
        else:
            stack.enter_context(_held(file, folder))
        yield


@contextlib.contextmanager
def _held(file: TextIO, folder: Path) -> Iterator[None]:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise HarcacheError(
            f"{folder} is in use by {holder}; wait until it ends, or stop it, and run again"
        ) from None
    file.truncate(0)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    file.write(f"process {os.getpid()} on {socket.gethostname()} ({command})\n")
    file.flush()
    try:
        yield
    finally:
        # Closing is not enough: a process that was forked meanwhile, such as a loader's, has it open too.
        fcntl.flock(file, fcntl.LOCK_UN)


def record_path(record_dir: Path, part: int) -> Path:
    """Return the file of a part's record."""
    return record_dir / f"part-{part:05d}.json"


def read_record(path: Path) -> Record:
    """Read one record; HarcacheError when it is damaged, of another format or under another part's name.

    NewerFormatError when a newer version wrote it.
    """
    try:
        record = Record.from_json(path.read_text(encoding="utf-8"), path)
    except (ValueError, KeyError, TypeError) as error:
        raise HarcacheError(
            f"{path} is no readable record ({error});"
            " run 'harcache cache verify --repair' and the stage again"
        ) from error
    if path != record_path(path.parent, record.part):
        raise HarcacheError(f"{path} is the record of part {record.part}; remove it and run the stage again")
    return record


def _sealed(text: str) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return f'{text}{_SEAL}{digest}"\n}}\n'


def _describe(path: Path) -> tuple[int, str]:
    return path.stat().st_size, file_digest(path)

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harcache.pipeline.base.errors import HarcacheError, NewerFormatError
from harcache.pipeline.base.files import partial_path
from harcache.pipeline.work.parts import (
    Outcome,
    Record,
    dataset_lock,
    discard_part,
    file_problem,
    publish,
    read_records,
    remove_part,
    sound_records,
    verify_files,
)

OUTCOMES = (
    Outcome("a", "ok", "f1", start=0, length=7),
    Outcome("b", "failed", "f2", reason="decoded 57 of 103 frames"),
)


def _publish(folder: Path, part: int = 0, data: bytes = b"boxes") -> Record:
    final = folder / f"part-{part:05d}.h5"
    partial_path(final).write_bytes(data)
    return publish(folder, folder, part, OUTCOMES, {partial_path(final): final})


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_published_part_is_read_back_whole(tmp_path: Path) -> None:
    records = [_publish(tmp_path, part) for part in (2, 0, 100_000)]
    assert read_records(tmp_path) == sorted(records, key=lambda record: record.part)
    assert records[0].files[0][:2] == ("part-00002.h5", 5)
    assert all(verify_files(tmp_path, record, checksums=True) for record in records)
    assert not list(tmp_path.glob("*.partial"))


def test_a_part_may_lie_in_many_folders_or_have_no_file(tmp_path: Path) -> None:
    temporary, final = tmp_path / "x.partial", tmp_path / "volume" / "c" / "0"
    temporary.write_bytes(b"1")
    record = publish(tmp_path, tmp_path / "records", 0, OUTCOMES, {temporary: final})
    assert record.files[0][0] == "volume/c/0" and final.read_bytes() == b"1"
    empty = publish(tmp_path, tmp_path / "records", 1, OUTCOMES[1:], {})
    assert read_records(tmp_path / "records") == [record, empty]


def test_the_same_part_gives_the_same_record_bytes(tmp_path: Path) -> None:
    _publish(tmp_path)
    first = (tmp_path / "part-00000.json").read_bytes()
    _publish(tmp_path)
    assert (tmp_path / "part-00000.json").read_bytes() == first


def test_a_part_made_again_replaces_the_old_one_and_never_writes_into_it(tmp_path: Path) -> None:
    _publish(tmp_path)
    os.link(tmp_path / "part-00000.h5", tmp_path / "cached")
    record = _publish(tmp_path, data=b"other boxes")
    assert (tmp_path / "cached").read_bytes() == b"boxes"
    assert read_records(tmp_path) == [record] and verify_files(tmp_path, record, checksums=True)


def test_a_part_without_its_file_can_not_be_published(tmp_path: Path) -> None:
    with pytest.raises(HarcacheError, match=r"part 3: .*x.partial is missing"):
        publish(tmp_path, tmp_path, 3, OUTCOMES, {tmp_path / "x.partial": tmp_path / "x"})
    assert _names(tmp_path) == []


_KILLED_PUBLISH = """
import os, signal, sys
from pathlib import Path
from typing import NoReturn
from harcache.pipeline.work import parts
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
setattr(parts, sys.argv[2], die)
folder = Path(sys.argv[1])
(folder / "new.partial").write_bytes(b"new boxes")
parts.publish(folder, folder, 0, (), {folder / "new.partial": folder / "part-00000.h5"})
"""


@pytest.mark.parametrize("step", ["remove_part", "commit_file", "flush", "write_atomically"])
def test_a_kill_while_a_part_is_replaced_leaves_the_old_part_or_none(tmp_path: Path, step: str) -> None:
    old = _publish(tmp_path)
    killed = subprocess.run([sys.executable, "-c", _KILLED_PUBLISH, str(tmp_path), step], check=False)
    assert killed.returncode == -signal.SIGKILL
    records = read_records(tmp_path)
    assert records == ([old] if step == "remove_part" else [])
    assert all(verify_files(tmp_path, record, checksums=True) for record in records)


def test_a_removed_part_is_gone_and_its_neighbour_is_not(tmp_path: Path) -> None:
    _publish(tmp_path, 0)
    kept = _publish(tmp_path, 1)
    remove_part(tmp_path, tmp_path, 0)
    assert read_records(tmp_path) == [kept]
    assert _names(tmp_path) == ["part-00001.h5", "part-00001.json"]


def test_a_part_that_is_not_there_can_not_be_removed(tmp_path: Path) -> None:
    with pytest.raises(HarcacheError, match="part 4 has no record"):
        remove_part(tmp_path, tmp_path, 4)


@pytest.mark.parametrize("record", ["whole", "damaged", "gone"])
def test_a_part_is_discarded_whatever_its_record(tmp_path: Path, record: str) -> None:
    _publish(tmp_path)
    if record == "damaged":
        (tmp_path / "part-00000.json").write_text("{")
    elif record == "gone":
        (tmp_path / "part-00000.json").unlink()
    discard_part(tmp_path, 0, [tmp_path / "part-00000.h5"])
    assert _names(tmp_path) == []


def test_a_missing_folder_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"part"',
            '"prt"',
            "part-00000.json is no readable record .it does not match its digest.; run 'harcache cache",
        ),
        ('"format": 2', '"format": 1', "format 1: this version reads 2"),
        (
            '"format": 2',
            '"format": 3',
            r"part-00000\.json was written by a newer version",
        ),
        ('"format": 2', '"format": [2]', r"format \[2\]: this version reads 2"),
        ('"id": "a"', '"id": "c"', "it does not match its digest"),
        ('"length": 7', '"length":\t7', "it does not match its digest"),
        ('"digest": "', '"digest": "0', "it does not match its digest"),
        ('"status"', '"state"', "is no readable record"),
        ("}", "", "is no readable record"),
    ],
)
def test_a_damaged_record_fails_and_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    _publish(tmp_path)
    path = tmp_path / "part-00000.json"
    text = path.read_text()
    assert text != text.replace(old, new)
    path.write_text(text.replace(old, new))
    with pytest.raises(HarcacheError, match=message):
        read_records(tmp_path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../notes.txt", "frames/../../notes.txt"])
def test_a_record_of_files_outside_of_its_cache_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "part-00003.json").write_text(Record(3, OUTCOMES, ((name, 5, "ab"),)).to_json())
    with pytest.raises(HarcacheError, match="may lie outside of the cache"):
        read_records(tmp_path)


@settings(max_examples=200)
@given(place=st.integers(0), damage=st.sampled_from(["flip", "cut"]))
def test_no_bit_of_a_record_changes_unseen(place: int, damage: str) -> None:
    content = bytearray(Record(3, OUTCOMES, (("part-00003.h5", 5, "ab"),)).to_json().encode())
    byte, bit = place // 8 % len(content), place % 8
    if damage == "flip":
        content[byte] ^= 1 << bit
    # A bit of the format's number makes it a newer version's, which is refused as well.
    with pytest.raises((ValueError, KeyError, TypeError, NewerFormatError)):
        Record.from_json((content if damage == "flip" else content[:byte]).decode())


def test_a_record_under_another_parts_name_is_refused(tmp_path: Path) -> None:
    _publish(tmp_path)
    (tmp_path / "part-00000.json").rename(tmp_path / "part-00001.json")
    with pytest.raises(HarcacheError, match=r"part-00001\.json is the record of part 0"):
        read_records(tmp_path)


def test_a_cut_or_missing_file_makes_its_part_unsound(tmp_path: Path) -> None:
    sound = _publish(tmp_path, 0)
    _publish(tmp_path, 1)
    _publish(tmp_path, 2)
    (tmp_path / "part-00001.h5").write_bytes(b"box")
    (tmp_path / "part-00002.h5").unlink()
    assert sound_records(tmp_path, tmp_path) == [sound]
    assert _names(tmp_path) == ["part-00000.h5", "part-00000.json"]


def test_a_flipped_bit_is_found_by_the_checksum_alone(tmp_path: Path) -> None:
    record = _publish(tmp_path)
    (tmp_path / "part-00000.h5").write_bytes(b"boxer")
    assert verify_files(tmp_path, record)
    assert not verify_files(tmp_path, record, checksums=True)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"boxes", None),
        (b"boxer", "does not match its record's digest"),
        (b"box", "has 3 bytes, its record says 5"),
        (None, "is missing"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(
    tmp_path: Path, content: bytes | None, problem: str | None
) -> None:
    ((name, size, digest),) = _publish(tmp_path).files
    path = tmp_path / name
    path.unlink() if content is None else path.write_bytes(content)
    assert file_problem(path, size, digest) == problem


def test_a_file_that_the_disk_does_not_give_is_told_of() -> None:
    # The kernel refuses to read this one, as it does a bad sector.
    assert file_problem(Path("/proc/self/mem"), 0, "ab") == "cannot be read (Input/output error)"


_HOLD_LOCK = """
import sys, time
from pathlib import Path
from typing import NoReturn
from harcache.pipeline.work.parts import dataset_lock
with dataset_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_holds_the_lock_and_a_dead_one_holds_none(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD_LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(HarcacheError, match=f"is in use by process {holder.pid} on "),
            dataset_lock(tmp_path),
        ):
            pass
        holder.kill()
    with dataset_lock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()
    with dataset_lock(tmp_path):
        pass


def test_a_process_that_was_forked_while_it_was_held_does_not_hold_the_lock(tmp_path: Path) -> None:
    # It inherits the open file, as a loader's processes do.
    with dataset_lock(tmp_path):
        file = next(fd for fd in os.listdir("/proc/self/fd") if _target(fd) == str(tmp_path / ".lock"))
        child = subprocess.Popen(["sleep", "60"], pass_fds=[int(file)])
    try:
        with dataset_lock(tmp_path):
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_where_nothing_can_be_written_readers_need_no_lock_and_writers_get_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    # A mount that is read-only, which a test can't make; to root no folder is.
    monkeypatch.setattr(Path, "open", refuse)
    with dataset_lock(tmp_path, reading=True):
        pass
    with pytest.raises(OSError, match="Read-only file system"), dataset_lock(tmp_path):
        pass


def _target(fd: str) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return None


def test_a_record_says_of_rules_and_notes_only_where_there_are_any(tmp_path: Path) -> None:
    plain = Record(3, OUTCOMES, ())
    assert [*json.loads(plain.to_json())] == ["part", "outcomes", "files", "format", "digest"]
    noted = Record(3, OUTCOMES, (), rules=2, notes=(("a", 7),))
    assert Record.from_json(noted.to_json()) == noted and Record.from_json(plain.to_json()) == plain

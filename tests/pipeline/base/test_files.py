"""A file is whole or not there, and one for which there is no room is named."""

import errno
from pathlib import Path

import pytest

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import partial_path, write_atomically, write_if_changed, writing

# Linux's device that is always full.
_FULL = Path("/dev/full")


def test_a_full_disk_is_an_error_that_names_the_file_and_what_to_do() -> None:
    expected = "data/x.h5 could not be written: no space left on device; make room and run again"
    with pytest.raises(HarcacheError, match=expected), writing(Path("data/x.h5")):
        _FULL.write_bytes(b"boxes")


def test_other_errors_of_the_operating_system_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path / "x"):
        (tmp_path / "no folder" / "x").write_bytes(b"boxes")


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x", b"old")
    partial_path(tmp_path / "x").symlink_to(_FULL)
    with pytest.raises(HarcacheError, match="x could not be written") as raised:
        write_atomically(tmp_path / "x", b"new")
    assert isinstance(raised.value.__cause__, OSError) and raised.value.__cause__.errno == errno.ENOSPC
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_file_is_written_only_when_that_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x"
    assert write_if_changed(path, b"1")
    before = path.stat()
    assert not write_if_changed(path, b"1")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert write_if_changed(path, b"2") and path.read_bytes() == b"2"
    assert [one.name for one in path.parent.iterdir()] == ["x"]

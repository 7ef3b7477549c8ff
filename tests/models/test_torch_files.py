"""Files of PyTorch are read as they were written, or refused in one line, in bounded time and memory."""

import io
import pickle
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from harcache.models.torch_files import read_torch

_VALUES = {
    "weights": torch.arange(12).reshape(3, 4),
    "epochs": [1, 2.5, None, "three"],
    ("a", 1): {"b": True},
}


def _saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _zip_with(pickled: bytes, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    """A file of PyTorch with a pickle of one's own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in (
            {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little"} | entries
        ).items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def _of_old(pickled: bytes) -> bytes:
    """The same in the format of before PyTorch 1.6."""
    magic, version = 0x1950A86A20F9469CFC6C, 1001
    about = {"protocol_version": version, "little_endian": True, "type_sizes": {}}
    return b"".join(
        [*(pickle.dumps(one, 2) for one in (magic, version, about)), pickled, pickle.dumps([], 2)]
    )


def _tower(levels: int) -> bytes:
    """A pickle of a tuple that holds itself 2 ** ``levels`` times, as a dict's key."""
    steps = b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(levels))
    return b"\x80\x02}" + b")" + steps + b"K\x01s."


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_what_was_saved_is_read(options: dict[str, Any], tmp_path: Path) -> None:
    data = _saved(_VALUES, **options)
    (tmp_path / "a.pt").write_bytes(data)
    for found in (read_torch(data), read_torch(tmp_path / "a.pt")):
        assert torch.equal(found.pop("weights"), _VALUES["weights"])
        assert found == {key: value for key, value in _VALUES.items() if key != "weights"}


@pytest.mark.parametrize("around", [_zip_with, _of_old])
@pytest.mark.parametrize("pickled", [_tower(60), b"\x80\x02)" + b"\x85" * 100_000 + b"."])
def test_a_pickle_that_would_keep_its_reader_busy_for_ever_is_refused(around: Any, pickled: bytes) -> None:
    begun = time.monotonic()
    with pytest.raises(ValueError, match="its values are nested without end"):
        read_torch(around(pickled))
    assert time.monotonic() - begun < 20


def test_lists_that_hold_one_another_without_end_are_refused() -> None:
    value: list[Any] = []
    for _ in range(60):
        value = [value, value]
    with pytest.raises(ValueError, match=r"nested without end|holds more than"):
        read_torch(_saved(value))
    value.append(value)
    with pytest.raises(ValueError, match=r"nested without end|hold themselves"):
        read_torch(_saved(value))


def test_parts_that_are_compressed_are_refused() -> None:
    data = _zip_with(b"\x80\x02]." + bytes(10**7), zipfile.ZIP_DEFLATED)
    assert len(data) < 20_000
    with pytest.raises(ValueError, match="its parts are compressed, which PyTorch never does"):
        read_torch(data)


def test_parts_that_lie_about_their_size_are_refused() -> None:
    data = bytearray(_zip_with(b"\x80\x02].", **{"data/0": bytes(100)}))
    # The size in the last part's entry of the directory.
    place = data.rindex(b"PK\x01\x02") + 20
    data[place : place + 8] = struct.pack("<II", 10**9, 10**9)
    with pytest.raises(ValueError, match="its parts are larger than the file"):
        read_torch(bytes(data))


@pytest.mark.parametrize(
    "damage", [b"", b"PK\x03\x04", b"PK\x03\x04" * 99, b"\x80\x02.", b"\xff" * 99, b"text"]
)
def test_what_is_no_file_of_pytorch_is_refused(damage: bytes) -> None:
    with pytest.raises(ValueError) as error:
        read_torch(damage)
    assert "\n" not in str(error.value) and len(str(error.value)) <= 200


def test_a_missing_file_is_another_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "none.pt")


def test_a_folder_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Is a directory"):
        read_torch(tmp_path)

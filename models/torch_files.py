"""Files of PyTorch from strangers: what they hold is checked before PyTorch reads them, and after.

PyTorch runs no code in them, but it does not look at the checksums that its files have, and some files of a
few hundred bytes keep it busy for ever or fill the memory.
"""

import io
import pickletools
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from harcache.pipeline.base.nesting import check_nesting

__all__ = ["read_torch"]

_PICKLES_OF_OLD = 5  # one after the other in the format of before PyTorch 1.6: the values are in the fourth
_DEEPEST = 200
_MOST_VALUES = 10_000_000
_READ_AT_A_TIME = 1 << 20
_GROWING = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})


def read_torch(source: Path | bytes, allowed: Sequence[Any] = ()) -> Any:
    """Return what a file that ``torch.save`` wrote holds, tensors on the CPU; nothing in it is run.

    ``allowed``: functions and classes that it may name beside PyTorch's own. Raises FileNotFoundError, and
    ValueError in one line for all else that is wrong with it: damaged (checked where its format has
    checksums), larger than the file once it is unpacked, nested without end, or naming other functions.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            _check(file)
            file.seek(0)
            with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
                # Of other versions of pickle; if it can be read, it is read.
                warnings.simplefilter("ignore")
                found = torch.load(file, map_location="cpu", weights_only=True)
        check_nesting(found)
    except FileNotFoundError:
        raise
    # Damage shows itself in many ways, within PyTorch as well.
    except Exception as error:
        raise ValueError(_reason(error)) from error
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    if "GLOBAL " in text:
        # PyTorch's own text advises to run what the file holds.
        return f"it names {text.partition('GLOBAL ')[2].split(' ')[0]}, which was not run"
    # So the reader of opcodes says that the bytes are no pickle, which tells a user nothing.
    unknown = text.startswith("at position ")
    if isinstance(error, ValueError | RuntimeError | zipfile.BadZipFile) and text and not unknown:
        return text.partition(". ")[0][:200]
    return "it asks for too much memory" if isinstance(error, MemoryError) else "it is no file of PyTorch"


def _check(file: BinaryIO) -> None:
    """Raise an error, of any kind, where a file is damaged or made to keep its reader busy."""
    # PyTorch too tells its formats apart by this.
    if file.read(4) != b"PK\x03\x04":
        file.seek(0)
        for _ in range(_PICKLES_OF_OLD):
            _check_pickle(file)
        return
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its parts are compressed, which PyTorch never does")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("its parts are larger than the file")
        for entry in entries:
            _check_entry(archive, entry)


def _check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    try:
        with archive.open(entry) as part:
            # At its end the part is compared with its CRC-32.
            while part.read(_READ_AT_A_TIME):
                pass
    except zipfile.BadZipFile as error:
        raise ValueError(f"it is damaged: {error}") from error
    if entry.filename.endswith(".pkl"):
        with archive.open(entry) as part:
            _check_pickle(part)


@dataclass(eq=False, slots=True)
class _Value:
    """Of a value in a pickle only how many values are in it, each counted where it stands, and how deep."""

    count: int = 1
    depth: int = 1


_MARK = _Value()


def _check_pickle(file: Any) -> None:
    """Raise ValueError where a pickle's values hold others so deep that no hash of them would end."""
    stack: list[_Value] = []
    memo: dict[int, _Value] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if "PUT" in name or name == "MEMOIZE":
            memo[len(memo) if name == "MEMOIZE" else _number(argument)] = stack[-1]
        elif "GET" in name:
            stack.append(memo[_number(argument)])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            taken = _taken(opcode, stack)
            target = taken[0] if name in _GROWING else _Value()
            inner = taken[1:] if name in _GROWING else taken
            target.count += sum(value.count for value in inner)
            target.depth = max(target.depth, 1 + max((value.depth for value in inner), default=0))
            if target.count > _MOST_VALUES or target.depth > _DEEPEST:
                raise ValueError("its values are nested without end")
            stack += [target] * len(opcode.stack_after)


def _number(argument: Any) -> int:
    return int(argument)


def _taken(opcode: Any, stack: list[_Value]) -> list[_Value]:
    """Take what an opcode takes from the stack, in the order it lay there; marks are left out."""
    before, above = list(opcode.stack_before), list[_Value]()
    if pickletools.markobject in before:
        while (value := stack.pop()) is not _MARK:
            above.append(value)
        before = before[: before.index(pickletools.markobject)]
    below = [stack.pop() for _ in before]
    return [*reversed(below), *reversed(above)]

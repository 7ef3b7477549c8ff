"""Pickles of arrays from strangers: pickletools reads the opcodes, and nothing in the file is ever called.

Only what NumPy arrays, numbers, text and plain containers need is understood. The arrays' bytes stay in the
file until they are asked for, so that a pickle larger than the memory can be read array by array.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harcache.pipeline.base.nesting import check_nesting
from harcache.pipeline.base.text import printable
from harcache.pipeline.skeletons.errors import PoseFileError

__all__ = ["PickledArray", "array_of", "read_pickle"]

_KEPT_IN_FILE = 256  # bytes; longer ones are read when they are asked for
_LONGEST_NAME = 1024
_OPCODES_BETWEEN_REPORTS = 1 << 16
_MEGABYTE = 1_000_000
_NUMBERS = "biuf"
_LONGEST_CODE = 8  # of a type of numbers, such as f8


@dataclass(frozen=True, slots=True)
class _Span:
    """Bytes that lie in the file, or as text of which each character stands for one."""

    start: int
    length: int
    as_text: bool


@dataclass(eq=False, slots=True)
class _Type:
    """A NumPy type on its way: what it is called, then its byte order."""

    code: str
    order: str = "="

    def dtype(self) -> np.dtype:
        dtype = np.dtype(self.code)
        if dtype.kind not in _NUMBERS:
            raise ValueError(f"an array of {dtype.name}")
        return dtype.newbyteorder(">" if self.order == ">" else "<")


@dataclass(eq=False, slots=True)
class PickledArray:
    """An array in a pickle, to be had by ``array_of``."""

    shape: tuple[int, ...] = ()
    dtype: np.dtype | None = None
    fortran: bool = False
    data: "bytes | bytearray | _Span" = b""

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.data.length if isinstance(self.data, _Span) else len(self.data)


@dataclass(frozen=True, slots=True)
class _Name:
    """A global of the allowed ones: what stands for it when the pickle asks to call it."""

    stand_in: Callable[..., Any] | None


def read_pickle(path: Path, advance: Callable[[int], None]) -> Any:
    """Return what a pickle of protocol 2 to 5 holds, of Python 2 or 3 and NumPy 1 or 2.

    Arrays come as ``PickledArray``. ``advance`` is told of megabytes as they are read.

    Raises ``PoseFileError`` for a file that is missing, cut off, no pickle, or holds anything but arrays and
    scalars of numbers, text, numbers, lists, tuples and dicts; nothing of that has been run then.
    """
    try:
        with _CheckedReader(io.FileIO(path)) as file:
            found = _Machine(file, advance).run()
            check_nesting(found)
            return found
    except FileNotFoundError:
        raise PoseFileError(f"{path} is missing; give the pickle's path") from None
    except OSError as error:
        raise PoseFileError(
            f"{path} can't be read ({error.strerror}); check the path and its rights"
        ) from error
    # What opcodes that make no sense lead to: a missing mark or memo, a key that can't be one, bad text.
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise PoseFileError(
            f"{path} is no pickle of arrays and plain containers: {reason}; get it anew"
        ) from error


def array_of(path: Path, pickled: PickledArray) -> np.ndarray:
    """Read an array of the pickle at ``path``; ``PoseFileError`` where its bytes do not make its shape."""
    data = pickled.data
    if isinstance(data, _Span):
        with path.open("rb") as file:
            file.seek(data.start)
            content = file.read(data.length)
        data = content.decode("utf-8", "surrogatepass").encode("latin-1") if data.as_text else content
    assert pickled.dtype is not None
    try:
        flat = np.frombuffer(data, pickled.dtype)
        return flat.reshape(pickled.shape, order="F" if pickled.fortran else "C")
    except ValueError as error:
        raise PoseFileError(f"{path}: {len(data)} bytes are no {pickled.dtype} {pickled.shape}") from error


class _CheckedReader(io.BufferedReader):
    """Refuses to read beyond the end, so that a length that lies asks for no memory."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw, 1 << 20)
        self.size = raw.seek(0, io.SEEK_END)
        raw.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size) if size is not None and size <= self.size else b""
        if size is None or len(data) < size:
            raise ValueError(f"it is cut off after {self.size} bytes")
        return data

    def readline(self, size: int | None = -1) -> bytes:
        return super().readline(_LONGEST_NAME)


class _Machine:
    """Runs the opcodes that containers and arrays need, as ``pickle`` does, on a stack, marks and a memo."""

    def __init__(self, file: _CheckedReader, advance: Callable[[int], None]) -> None:
        self._file, self._advance = file, advance
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        reported = 0
        for number, (opcode, argument, _) in enumerate(pickletools.genops(self._file)):
            self._step(opcode.name, argument)
            if number % _OPCODES_BETWEEN_REPORTS == 0:
                position = self._file.tell() // _MEGABYTE
                self._advance(position - reported)
                reported = position
        self._advance(self._file.size // _MEGABYTE - reported)
        return self._stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self._stack.append(self._value(name, argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self._memo:
                raise ValueError(f"it takes up number {argument}, which it never noted")
            self._stack.append(self._memo[argument])
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _IGNORED:
            pass
        elif name in _STEPS:
            _STEPS[name](self)
        elif name == "GLOBAL":
            self._stack.append(_global(*argument.split(" ", 1)))
        else:
            raise ValueError(f"it has the opcode {name}, which arrays do not need")

    def _value(self, name: str, argument: Any) -> Any:
        if not isinstance(argument, str | bytes | bytearray) or len(argument) <= _KEPT_IN_FILE:
            return argument
        if isinstance(argument, str) and "UNICODE" in name:
            length = len(argument.encode("utf-8", "surrogatepass"))
            return _Span(self._file.tell() - length, length, as_text=True)
        return _Span(self._file.tell() - len(argument), len(argument), as_text=False)

    def mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("its stack is empty too soon")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def pop(self) -> None:
        self._stack.pop()

    def append(self) -> None:
        (item,) = self._last(1)
        self._top(list).append(item)

    def appends(self) -> None:
        items = self._to_mark()
        self._top(list).extend(items)

    def set_item(self) -> None:
        key, value = self._last(2)
        self._top(dict)[_key(key)] = value

    def set_items(self) -> None:
        items = self._to_mark()
        self._top(dict).update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise ValueError(f"it adds to a {type(self._stack[-1]).__name__} as to a {kind.__name__}")
        return self._stack[-1]

    def tuple_of_mark(self) -> None:
        items = self._to_mark()
        self._stack.append(tuple(items))

    def tuple_of(self, count: int) -> None:
        self._stack.append(tuple(self._last(count)))

    def stack_global(self) -> None:
        module, name = self._last(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it names something by what is no text")
        self._stack.append(_global(module, name))

    def reduce(self) -> None:
        name, arguments = self._last(2)
        if not isinstance(name, _Name) or name.stand_in is None or not isinstance(arguments, tuple):
            raise ValueError("it calls what is no function of NumPy's pickles")
        self._stack.append(name.stand_in(*arguments))

    def build(self) -> None:
        (state,) = self._last(1)
        target = self._stack[-1]
        if isinstance(target, PickledArray):
            _, shape, kind, fortran, data = state
            _fill(target, data, kind, shape, fortran)
        elif isinstance(target, _Type):
            target.order = state[1]
        else:
            raise ValueError(f"it changes a {type(target).__name__}")


def _key(key: Any) -> Any:
    """Refuse keys of which a few bytes may describe so many values that no hash of them would end."""
    if isinstance(key, _KEYS):
        return key
    raise ValueError(f"it has a {type(key).__name__} as a key")


_KEYS = (str, bytes, int, float, type(None), _Span)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})
_NUMBERS_AS_SUCH = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
_TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"}
_BYTES = {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_VALUES = frozenset(_NUMBERS_AS_SUCH | _TEXTS | _BYTES)
_STEPS: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "TUPLE": _Machine.tuple_of_mark,
    "TUPLE1": lambda machine: machine.tuple_of(1),
    "TUPLE2": lambda machine: machine.tuple_of(2),
    "TUPLE3": lambda machine: machine.tuple_of(3),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}


def _fill(array: PickledArray, data: Any, kind: Any, shape: Any, fortran: Any) -> PickledArray:
    if not isinstance(kind, _Type):
        raise ValueError("an array without a type")
    array.dtype = kind.dtype()
    if not isinstance(data, bytes | bytearray | str | _Span):
        raise ValueError("an array without bytes of its own")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array without a shape")
    # Python 2's bytes come as text of which each character is one.
    raw = (
        data if isinstance(data, _Span) else data.encode("latin-1") if isinstance(data, str) else bytes(data)
    )
    array.data, array.shape, array.fortran = raw, shape, bool(fortran)
    return array


def _frombuffer(data: Any, kind: Any, shape: Any, order: Any) -> PickledArray:
    return _fill(PickledArray(), data, kind, shape, order == "F")


def _scalar(kind: Any, data: Any) -> bool | int | float:
    array = _fill(PickledArray(), data, kind, (), False)
    if isinstance(array.data, _Span):
        raise ValueError("a number of too many bytes")
    return np.frombuffer(array.data, array.dtype).reshape(()).item()


def _type(code: Any, *_: Any) -> _Type:
    if not isinstance(code, str) or len(code) > _LONGEST_CODE:
        raise ValueError("a type of array without a name")
    return _Type(code)


def _encode(text: Any, encoding: Any = "latin1") -> Any:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in another encoding than NumPy's")
    return text if isinstance(text, _Span) else text.encode("latin-1")


_GLOBALS: dict[tuple[str, str], _Name] = {
    ("numpy", "ndarray"): _Name(None),
    ("numpy", "dtype"): _Name(_type),
    ("_codecs", "encode"): _Name(_encode),
    **{(builtins, "bytes"): _Name(lambda: b"") for builtins in ("builtins", "__builtin__")},
    # NumPy 2 gave its modules other names; pickles have those of the NumPy that wrote them.
    **{
        (f"numpy.{core}.{module}", name): _Name(stand_in)
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", lambda *_: PickledArray()),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}


def _global(module: str, name: str) -> _Name:
    if (module, name) not in _GLOBALS:
        raise ValueError(f"it names {module}.{name}, which has no place in one and was not run")
    return _GLOBALS[module, name]

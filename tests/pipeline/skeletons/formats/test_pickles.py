"""Pickles of arrays are read as pickle would; nothing else in them is run, kept or believed."""

import datetime
import os
import pickle
import struct
import time
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harcache.pipeline.skeletons.errors import PoseFileError
from harcache.pipeline.skeletons.formats.pickles import PickledArray, array_of, read_pickle

_in_one_folder = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
_DTYPES = st.one_of(
    hnp.floating_dtypes(sizes=(16, 32, 64), endianness="?"),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(),
    hnp.boolean_dtypes(),
)
_ARRAYS = st.builds(
    lambda array, order: np.asarray(array, order=order),
    _DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, min_side=0, max_side=9))),
    st.sampled_from("CF"),
)
_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=300) | _ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def _read(path: Path) -> Any:
    return read_pickle(path, lambda megabytes: None)


def _assert_same(found: Any, expected: Any, path: Path) -> None:
    if isinstance(expected, np.ndarray):
        array = array_of(path, found)
        assert array.dtype == expected.dtype and array.shape == expected.shape
        assert array.tobytes() == expected.tobytes()
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _assert_same(one, other, path)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            _assert_same(found[key], expected[key], path)
    elif isinstance(expected, str) and len(expected) > 256:
        assert not isinstance(found, PickledArray)  # long text is no id: it stays in the file
    else:
        assert found == expected and type(found) is type(expected)


@_in_one_folder
@given(content=_PLAIN, protocol=st.integers(2, 5))
def test_arrays_and_plain_containers_come_as_pickle_has_them(
    tmp_path: Path, content: Any, protocol: int
) -> None:
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    _assert_same(_read(path), content, path)


def test_arrays_with_more_bytes_than_are_kept_come_too(tmp_path: Path) -> None:
    arrays = [np.arange(5000.0).reshape(50, 100).astype(kind) for kind in ("<f2", ">f4", "u1")]
    for protocol in (2, 3, 4, 5):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps([*arrays, np.asfortranarray(arrays[0]), arrays[0]], protocol))
        found = _read(path)
        _assert_same(found, [*arrays, np.asfortranarray(arrays[0]), arrays[0]], path)
        assert found[0] is found[4]


@pytest.mark.parametrize("kind", [np.float16, np.int64, np.bool_, np.uint8])
def test_numpys_scalars_are_plain_numbers(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "scalar.pkl"
    path.write_bytes(pickle.dumps(kind(1)))
    assert _read(path) == 1 and type(_read(path)) in (bool, int, float)


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_pickles_of_numpy_1_and_2_are_read(tmp_path: Path, core: bytes) -> None:
    path = tmp_path / "array.pkl"
    content = pickle.dumps(np.arange(3.0), 2)
    path.write_bytes(content.replace(b"numpy._core", core).replace(b"numpy.core", core))
    assert array_of(path, _read(path)).tolist() == [0, 1, 2]


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pkl"
    data = np.arange(200, dtype="<f4").tobytes()
    content = pickle.dumps(np.arange(200, dtype="<f4"), 3)
    as_string = b"T" + struct.pack("<i", len(data)) + data  # Python 2's bytes: BINSTRING
    path.write_bytes(content.replace(b"B" + struct.pack("<I", len(data)) + data, as_string))
    assert b"T" + struct.pack("<i", 800) in path.read_bytes()
    assert array_of(path, _read(path)).tolist() == list(range(200))


class _Runs:
    """What its pickle calls when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


_MALICIOUS = {
    "a command": (_Runs(os.system, "touch ran"), r"names posix\.system, .* was not run"),
    "an expression": (_Runs(eval, "open('ran', 'w')"), r"names (builtins|__builtin__)\.eval"),
    "a file's removal": (_Runs(os.remove, "kept"), r"names posix\.remove"),
    "an import": (_Runs(__import__, "antigravity"), r"names (builtins|__builtin__)\.__import__"),
    "an attribute": (_Runs(getattr, "text", "upper"), r"names (builtins|__builtin__)\.getattr"),
    "NumPy's loader": (_Runs(np.load, "kept"), r"names numpy\.load"),
    "a huge array": (_Runs(np.ndarray, (1 << 40,)), "calls what is no function"),
    "huge bytes": (_Runs(bytes, 1 << 40), "is no pickle"),
    "an array of objects": (np.array([None], object), "an array of object"),
    "an array of text": (np.array(["a"]), "an array of str"),
    "a structured array": (np.zeros(2, [("a", "f4")]), "an array of void"),
    "complex numbers": (np.zeros(2, complex), "an array of complex"),
    "a subclass": (np.ma.array([1.0]), "names numpy.ma"),
    "a set": ({1, 2}, r"EMPTY_SET|names __builtin__\.set"),
    "a dict of another kind": (OrderedDict(a=1), r"names collections\.OrderedDict"),
    "a date": (datetime.date(2020, 1, 1), r"names datetime\.date"),
    "a class": (Path, r"names pathlib\.Path"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("case", _MALICIOUS)
def test_anything_else_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kept").touch()
    content, message = _MALICIOUS[case]
    Path("bad.pkl").write_bytes(pickle.dumps({"annotations": [content]}, protocol))
    with pytest.raises(PoseFileError, match=message):
        _read(Path("bad.pkl"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pkl", "kept"]


_SMALL = pickle.dumps({"a": [np.arange(6.0).reshape(2, 3), "text", (1, None, 2.5)], "b": np.int64(7)})


@pytest.mark.parametrize("tenths", range(10))
def test_a_cut_off_pickle_is_named_so(tmp_path: Path, tenths: int) -> None:
    path = tmp_path / "cut.pkl"
    path.write_bytes(_SMALL[: len(_SMALL) * tenths // 10])
    with pytest.raises(PoseFileError, match=r"cut\.pkl is no pickle .* cut off after \d+ bytes"):
        _read(path)


@settings(_in_one_folder, max_examples=300)
@given(data=st.data(), protocol=st.integers(2, 5))
def test_damage_gives_another_value_or_a_named_error_but_nothing_else(
    tmp_path: Path, data: st.DataObject, protocol: int
) -> None:
    content = bytearray(pickle.dumps(pickle.loads(_SMALL), protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.pkl"
    path.write_bytes(content)
    try:
        found = _read(path)
        for value in found["a"] if isinstance(found, dict) and isinstance(found.get("a"), list) else []:
            if isinstance(value, PickledArray):
                array_of(path, value)
    except PoseFileError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62),  # bytes
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40),  # text
        b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1),  # a number
        b"\x80\x02]r" + struct.pack("<I", (1 << 32) - 1) + b".",  # a place in the memo
        b"\x80\x02cnumpy" + b"x" * 100_000,  # a name
    ],
    ids=["bytes", "text", "number", "memo", "name"],
)
def test_a_length_that_lies_takes_no_memory(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lies.pkl"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        _read(path)
    except PoseFileError as error:
        assert "lies.pkl is no pickle" in str(error)
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()


def _tower(levels: int) -> bytes:
    """A tuple that holds itself 2 ** levels times, in three bytes a level."""
    return b")" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(levels))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02}" + _tower(60) + b"K\x01s.", "it has a tuple as a key"),
        (b"\x80\x02}(" + _tower(60) + b"K\x01u.", "it has a tuple as a key"),
        (b"\x80\x02" + _tower(60) + b".", "holds more than"),
        (b"\x80\x02" + b"(" + b")" + b"\x85" * 100_000 + b"t.", "nested more than 100 deep"),
        (b"\x80\x04" + _tower(60) + b"\x8c\x01a\x93.", "it names something by what is no text"),
        (b"\x80\x02cnumpy\ndtype\n" + _tower(60) + b"\x85R.", "a type of array without a name"),
        (b"\x80\x02cnumpy\ndtype\nX\x50\x00\x00\x00" + b"f4," * 26 + b"f4\x85R.", "a type of array without"),
        (b"\x80\x02]q\x00h\x00a.", "or hold themselves"),
    ],
    ids=["key", "keys", "tower", "deep", "name", "type", "types", "itself"],
)
def test_values_that_hold_one_another_without_end_are_refused_at_once(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "tower.pkl"
    path.write_bytes(content)
    begun = time.monotonic()
    with pytest.raises(PoseFileError, match=f"tower.pkl is no pickle .*{message}"):
        _read(path)
    assert time.monotonic() - begun < 10


def test_an_array_whose_bytes_do_not_make_its_shape_is_named(tmp_path: Path) -> None:
    path = tmp_path / "shape.pkl"
    content = pickle.dumps(np.zeros((2, 3)), 3)
    path.write_bytes(content.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"))
    with pytest.raises(PoseFileError, match=r"48 bytes are no float64 \(2, 4\)"):
        array_of(path, _read(path))


def test_a_missing_pickle_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(PoseFileError, match=r"gone\.pkl is missing"):
        _read(tmp_path / "gone.pkl")
    with pytest.raises(PoseFileError, match="can't be read"):
        _read(tmp_path)

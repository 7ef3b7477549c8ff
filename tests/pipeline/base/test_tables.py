"""Tables come back as they were written, and whatever else a file holds is refused with its line."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.tables import parse_json, read_json, read_table, write_json, write_table

_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


def _row(row: Mapping[str, str]) -> dict[str, str]:
    return dict(row)


@settings(deadline=None)
@given(st.lists(st.tuples(_TEXT, _TEXT)))
def test_a_table_reads_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.getbasetemp() / "written.csv"
    write_table(path, ("a", "b"), rows)
    found = read_table(path, _row, ["a", "b"])
    assert [(row["a"], row["b"]) for row in found.rows] == rows
    assert not write_table(path, ("a", "b"), rows)


def test_rows_know_their_lines_whatever_stands_in_between(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('b,a\n1,2\n\n"3\n3",4\n5,6')
    found = read_table(path, _row, ["a"])
    assert found.columns == ("b", "a")
    assert found.rows == [{"b": "1", "a": "2"}, {"b": "3\n3", "a": "4"}, {"b": "5", "a": "6"}]
    assert found.lines == [2, 5, 6]


def test_columns_that_the_reader_does_not_know_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b,Start,c\n1,2,3,4\n")
    assert read_table(path, _row, ["a"], known=["b"]).unknown == ("Start", "c")
    assert read_table(path, _row, ["a"]).unknown == ()


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\r\n1,é\r\n", encoding="utf-8-sig")
    assert read_table(path, _row, ["a"]).rows == [{"a": "1", "b": "é"}]


def test_blanks_are_kept_unless_they_are_to_be_stripped(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a , b\n1 , "2, 3"\n')
    assert read_table(path, _row, ["a"], strip=True).rows == [{"a": "1", "b": "2, 3"}]
    path.write_text("a,b\n 1,2 \n")
    assert read_table(path, _row, ["a"]).rows == [{"a": " 1", "b": "2 "}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: no column 'a': expected a,b[,c]. Columns found: none"),
        (b"b,c\n", "line 1: no column 'a': expected a,b[,c]. Columns found: b, c"),
        (b"a,b,b\n", "line 1: column 'b' comes twice: expected each once"),
        (b"a,b\n1,2\n1\n", "line 3: wrong number of columns: 1, expected 2 as in the first line"),
        (b"a,b\n1,2,3\n", "line 2: wrong number of columns: 3, expected 2 as in the first line"),
        (b"a,b\n1,2\n\n1,\xe9\n", "line 4: byte 0xe9 is not UTF-8: expected a table in UTF-8"),
        (b"\xff\xfea\x00", "line 1: byte 0xff is not UTF-8: expected a table in UTF-8"),
        (b'a,b\n1,"2\n', "line 2: unexpected end of data"),
        (b'a,b\n"1"x,2\n', "line 2: ',' expected after '\"'"),
        (b"a,b\n1," + b"2" * 200_000, "line 2: field larger than field limit (131072)"),
        (
            b"a,b\n1,2\n" + b"1," * 600_000,
            "line 3: it has over 1,000,000 characters: expected a row of a CSV",
        ),
        (b"a,b\n1,2\n1,x\n", "line 3: b is x: expected 2"),
        (b"a,b\n1,2\nx,2\n", "line 3: invalid literal for int() with base 10: 'x'"),
    ],
)
def test_what_is_wrong_with_a_table_is_named_with_its_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    def parse(row: Mapping[str, str]) -> None:
        int(row["a"])
        if row["b"] != "2":
            raise HarcacheError(f"b is {row['b']}: expected 2")

    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(HarcacheError) as refused:
        read_table(path, parse, ["a", "b"], known=["c"], remedy="; mend it")
    assert re.fullmatch(rf"{re.escape(f'{path}, {message}')}.*; mend it", str(refused.value))


def test_json_is_written_once_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    assert write_json(path, {"b": 1, "a": Path("x/y")})
    assert not write_json(path, {"b": 1, "a": Path("x/y")})
    assert path.read_text() == '{\n "b": 1,\n "a": "x/y"\n}\n'
    assert read_json(path) == {"b": 1, "a": "x/y"}
    write_json(path, {"b": 1, "a": 2}, sort_keys=True)
    assert list(read_json(path)) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[1]", "holds no JSON object"),
        (b"[" * 100_000, "is no JSON (it is nested too deeply)"),
    ],
)
def test_a_file_that_is_no_json_object_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    path.write_bytes(content)
    with pytest.raises(HarcacheError, match=rf"values\.json {re.escape(said)}.*; mend it"):
        read_json(path, remedy="; mend it")


def test_what_json_nests_too_deeply_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json('{"a":' * 100_000)

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.work.outcomes import (
    Counts,
    check_max_failed,
    listed_tables,
    read_counts,
    read_failures,
    table_problem,
    write_counts,
    write_failures,
)
from harcache.pipeline.work.parts import Outcome

_OUTCOMES = [
    Outcome("b", "failed", "", 'decoded 3 of 5 frames, "cut"'),
    Outcome("c", "ok", ""),
    Outcome("a", "skipped", "", "nobody is seen"),
]


def test_only_what_is_not_ok_is_listed_by_id(tmp_path: Path) -> None:
    path = tmp_path / "failures" / "pose.csv"
    assert write_failures(path, _OUTCOMES)
    assert not write_failures(path, reversed(_OUTCOMES))
    assert read_failures(path) == [
        ("a", "skipped", "nobody is seen"),
        ("b", "failed", 'decoded 3 of 5 frames, "cut"'),
    ]


def test_a_missing_or_foreign_list_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pose.csv"
    with pytest.raises(HarcacheError, match=r"pose\.csv is missing; run the stage"):
        read_failures(path)
    for content, said in (
        (b"", "line 1: no column 'id': expected id,status,reason"),
        (b"name,why\n", "line 1: no column 'id': expected id,status,reason"),
        (b"id,status,reason\na,failed\n", "line 2: wrong number of columns: 2, expected 3"),
        (b"id,status,reason\na,failed,\xff\n", "line 2: byte 0xff is not UTF-8"),
        (b"id,status,reason\na,failed,%b\n" % (b"x" * 200_000), "line 2: field larger than field limit"),
    ):
        path.write_bytes(content)
        with pytest.raises(HarcacheError, match=rf"pose\.csv, {said}.*; run the stage again"):
            read_failures(path)


def test_counts_are_written_only_when_changed(tmp_path: Path) -> None:
    path = tmp_path / "counts" / "pose.json"
    assert write_counts(path, Counts(5, 1, 2))
    assert not write_counts(path, Counts(5, 1, 2))
    assert read_counts(path) == Counts(5, 1, 2)


def _counted(folder: Path) -> tuple[Path, Path]:
    """Counts, and the table that they hold the digest of."""
    counts, table = folder / "counts" / "pose.json", folder / "pose.csv"
    table.write_text("id\na\n")
    write_counts(counts, Counts(5, 1, 2), [table])
    return counts, table


def test_a_table_is_compared_with_what_the_counts_say_of_it(tmp_path: Path) -> None:
    counts, table = _counted(tmp_path)
    assert listed_tables(counts) == [table]
    assert table_problem(table, counts) is None
    table.write_text("id\nb\n")
    assert table_problem(table, counts) == "does not match its record's digest"
    table.unlink()
    assert table_problem(table, counts) == "is missing"


def test_no_bit_of_counts_changes_unseen(tmp_path: Path) -> None:
    counts, _ = _counted(tmp_path)
    whole = counts.read_bytes()
    # Each byte, at one place or another; all bits would take seconds.
    for bit in range(0, 8 * len(whole), 7):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        counts.write_bytes(content)
        with pytest.raises(
            HarcacheError, match=r"pose\.json is damaged \(.*run the stage of that name again"
        ):
            read_counts(counts)
    counts.unlink()
    with pytest.raises(HarcacheError, match=r"pose\.json is missing; run the stage of that name"):
        read_counts(counts)


def test_counts_of_before_tables_had_digests_are_read_and_tell_of_none(tmp_path: Path) -> None:
    counts, table = tmp_path / "counts" / "pose.json", tmp_path / "pose.csv"
    counts.parent.mkdir()
    counts.write_text('{\n "ok": 5,\n "skipped": 1,\n "failed": 2\n}\n')
    assert read_counts(counts) == Counts(5, 1, 2)
    assert listed_tables(counts) == [] and table_problem(table, counts) is None


@pytest.mark.parametrize(
    "tables", [{"../a.csv": [3, "x"]}, {"/a.csv": [3, "x"]}, {"probes.jsonl": [3, "x"]}, {"a.csv": [3]}, [1]]
)
def test_counts_that_name_other_files_are_refused_whatever_their_digest(
    tmp_path: Path, tables: object
) -> None:
    values = {"ok": 5, "skipped": 1, "failed": 2, "tables": tables}
    path = tmp_path / "pose.json"
    path.write_text(json.dumps(values | {"digest": fingerprint(values)}, indent=1) + "\n")
    with pytest.raises(HarcacheError, match=r"pose\.json is damaged \((?!it does not match its digest)"):
        read_counts(path)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_the_limit_is_a_share_of_all_clips(ok: int, skipped: int, failed: int) -> None:
    counts = Counts(ok, skipped, failed)
    assert counts.total == ok + skipped + failed
    check_max_failed("pose", counts, failed / max(counts.total, 1) + 1e-9, Path("unread.csv"))


def test_more_failures_than_allowed_are_an_error_that_tells_where_to_look(tmp_path: Path) -> None:
    path = tmp_path / "pose.csv"
    write_failures(path, _OUTCOMES)
    message = r"pose: 1 of 3 failed, more than 1\.0%; first b: decoded 3 of 5.*pose\.csv: mend or remove them"
    with pytest.raises(HarcacheError, match=message):
        check_max_failed("pose", Counts(1, 1, 1), 0.01, path)

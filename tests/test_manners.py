"""How commands answer: results on stdout, all else on stderr, one line and a status for an error."""

import ast
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from harcache.cli import main
from harcache.commands.verify import Problem, Verified, report
from harcache.pipeline.base.errors import HarcacheError, did_you_mean
from harcache.pipeline.base.progress import complain, notice, progress, quietly, say
from harcache.pipeline.params.table import as_markdown

_ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HARCACHE_")]:
        monkeypatch.delenv(name)


def _harcache(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="harcache")


def _groups(group: click.Group) -> Iterator[click.Command]:
    yield group
    for command in group.commands.values():
        yield from _groups(command) if isinstance(command, click.Group) else [command]


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("harcache.commands.cli.extraction.run_stage", fail)


def test_every_option_and_command_says_what_it_is() -> None:
    for command in _groups(main):
        assert command.help, command.name
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{command.name} {parameter.opts}"


def test_a_result_alone_is_on_standard_output() -> None:
    done = _harcache("--quiet", "models", "--json")
    assert {row["name"] for row in json.loads(done.stdout)} >= {"EPAM-Net", "AMFI-Net"}
    assert done.stderr == ""


def test_what_is_damaged_is_told_as_json_and_is_an_error_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = Verified(2, (Problem("rgb", Path("rgb.zarr/c"), "a changed byte", ("one",), 0),), ())
    with pytest.raises(HarcacheError, match="1 things are wrong in 2 files"):
        report(found, "demo", repaired=False, as_json=True)
    told = capsys.readouterr()
    (problem,) = json.loads(told.out)["problems"]
    assert (problem["file"], problem["clips"]) == ("rgb.zarr/c", ["one"])
    assert told.err == "rgb.zarr/c: a changed byte; clips: one\n"


def test_progress_and_notices_are_on_standard_error_and_quiet_leaves_them_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> None:
        notice("made anew")
        with progress(2, "work") as bar:
            bar.advance(2)

    work()
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"made anew\nwork: 2/2 clips, .*\n", told.err)
    with quietly():
        work()
    assert capsys.readouterr() == ("", "")
    work()
    assert capsys.readouterr().err.startswith("made anew\n")


def test_quiet_ends_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert _harcache("--quiet", "cache", "info", "none").exit_code == 1
    notice("again")
    assert capsys.readouterr().err == "again\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (HarcacheError("a\nb is wrong"), "Error: a b is wrong\n"),
        (PermissionError(13, "Permission denied", "data/x"), "Error: data/x: Permission denied; see that"),
        (OSError("no number"), "Error: no number; see that"),
    ],
)
def test_an_error_is_one_line_with_status_1_and_has_its_traceback_with_debug(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, error)
    done = _harcache("detect", "demo")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert _harcache("--debug", "detect", "demo").exception is error
    monkeypatch.setenv("HARCACHE_DEBUG", "1")
    assert _harcache("detect", "demo").exception is error


def test_of_many_names_an_error_lists_some() -> None:
    assert did_you_mean("walk", ["sit", "run"]) == "Known: run, sit."
    assert did_you_mean("walk", [f"S{n:03}" for n in range(100)]).endswith(", S039 and 60 more.")


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, ValueError("a defect"))
    assert isinstance(_harcache("detect", "demo").exception, ValueError)


def test_ctrl_c_ends_with_130_and_says_that_the_command_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, KeyboardInterrupt())
    done = _harcache("detect", "demo")
    assert done.exit_code == 130
    assert re.fullmatch(r"Stopped; .* the same command goes on\.\n", done.stderr)


def test_a_reader_that_goes_away_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert _harcache("detect", "demo").output == ""


def test_help_and_the_docs_tell_how_commands_end() -> None:
    shown = _harcache("--help").stdout
    told = (_ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for status in (0, 1, 2, 130):
        assert re.search(rf"^ *{status}  \S", shown, re.MULTILINE), status
        assert re.search(rf"^\| {status} \|", told, re.MULTILINE), status


@pytest.mark.parametrize(
    ("words", "incomplete", "wanted"),
    [([], "prev", "preview"), (["cache"], "ver", "verify"), (["detect"], "de", "demo")],
)
def test_commands_and_datasets_are_completed(
    words: list[str], incomplete: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(_ROOT)
    completed = ShellComplete(main, {}, "harcache", "_HARCACHE_COMPLETE").get_completions(words, incomplete)
    assert [one.value for one in completed] == [wanted]


def test_without_parameters_no_dataset_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ShellComplete(main, {}, "harcache", "_HARCACHE_COMPLETE").get_completions(["detect"], "") == []


def test_the_page_of_parameters_is_what_the_code_says() -> None:
    page = (_ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert page == as_markdown(), "write it again: harcache params > docs/parameters.md"
    assert _harcache("params").stdout == page


@pytest.mark.parametrize(
    ("error", "printed"),
    [
        (HarcacheError("clip 'a\x1b[2J\nb' is none"), r"clip 'a\x1b[2J b' is none"),
        (HarcacheError("caf\udce9.mp4 is no video"), r"caf\udce9.mp4 is no video"),
        (FileNotFoundError(2, "No such file", b"caf\xe9\x1b"), r"caf\udce9\x1b: No such file; see that"),
    ],
)
def test_an_error_is_one_line_whatever_names_are_in_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception, printed: str
) -> None:
    _failing(monkeypatch, error)
    done = _harcache("crop", "demo")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: {printed}") and done.stderr.count("\n") == 1


def test_results_notices_and_progress_show_names_with_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    name = "caf\udce9\x1b[31m\n.mp4"
    notice(name)
    complain(name)
    say(name, "next")
    with progress(1, name) as shown:
        shown.advance()
    captured = capsys.readouterr()
    escaped = r"caf\udce9\x1b[31m\n.mp4"
    assert captured.out.splitlines() == [escaped, "next"]
    assert [line.partition(": ")[0] for line in captured.err.splitlines()] == [escaped] * 3


def test_whatever_is_printed_goes_through_what_escapes_it() -> None:
    """Anything else would print names as files have them."""
    folders = ("commands", "stages", "pipeline", "models", "cache")
    paths = [path for folder in folders for path in (_ROOT / folder).rglob("*.py")]
    printing = {
        path.relative_to(_ROOT).as_posix()
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "click.echo", "sys.stdout.write")
    }
    # What they print is the program's own, or goes to a file.
    own = {f"commands/cli/{name}.py" for name in ("bench", "check", "groups", "params")}
    assert printing == {"pipeline/base/progress.py", "pipeline/video/probes.py", *own}

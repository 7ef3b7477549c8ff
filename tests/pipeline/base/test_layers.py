"""What is not installed is named with the command that installs it, and the base layer reads caches alone."""

import ast
import pickle
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.layers import LAYERS, MissingPartError, explained, is_there, load, require
from tests.projects import ROOT

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_CODE = ("benchmarks", "cache", "commands", "models", "pipeline", "stages")
# Packages that others of the same layer can't be without.
_BROUGHT_ALONG = {"tornado": "distributed", "pkg_resources": "mmengine"}


def _names(requirements: list[str]) -> set[str]:
    found = (re.match(r"([\w-]+)(?:\[([\w,-]+)\])?", one) for one in requirements)
    return {
        name
        for match in found
        for name in (
            set().union(*(_names(_PROJECT["optional-dependencies"][extra]) for extra in match[2].split(",")))
            if match and match[1] == "harcache"
            else {match[1].lower()}  # type: ignore[index]
        )
    }


def _required(layer: str) -> set[str]:
    if layer == "base":
        return _names(_PROJECT["dependencies"])
    if layer == "mmpose":
        lines = (ROOT / "models" / "pretrained" / "mmpose.txt").read_text().splitlines()
        return _names([line for line in lines if not line.startswith("#")])
    return _names(_PROJECT["optional-dependencies"][layer])


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_is_what_its_extra_installs(layer: str) -> None:
    named = set(LAYERS[layer].modules.values())
    if layer == "mmpose":
        assert named <= _required(layer)
    else:
        assert named == _required(layer)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


def test_every_package_that_is_imported_belongs_to_a_layer() -> None:
    known = {module for layer in LAYERS.values() for module in layer.modules}
    files = [path for folder in _CODE for path in (ROOT / folder).rglob("*.py")]
    found = {name for path in files for name in _imports(path)} - sys.stdlib_module_names - {"harcache"}
    assert found - set(_BROUGHT_ALONG) <= known
    assert len(found) > 20


@pytest.mark.parametrize(
    ("module", "wanted", "command"),
    [
        ("torch", None, r"pip install 'harcache\[train\]'"),
        ("torch", "extract", r"pip install 'harcache\[extract\]'"),
        ("av", "train", r"pip install 'harcache\[extract\]'"),
        ("ultralytics", None, r"pip install 'harcache\[yolo\]'"),
        ("dask_jobqueue", None, r"dask-jobqueue is not .*'harcache\[slurm\]'"),
        ("mmpose", None, r'pip install --no-deps -r "\$\(harcache check --mmpose\)"'),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    module: str, wanted: str | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert not is_there(module)
    with pytest.raises(HarcacheError, match=command) as caught:
        load(module, wanted)
    assert isinstance(caught.value, ImportError)
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(MissingPartError, match="is not installed; run: pip install"):
        require("json", module)


def test_a_package_that_is_there_is_loaded_and_required() -> None:
    assert load("json").dumps({}) == "{}"
    require("json", "numpy")


def test_a_package_that_no_layer_brings_keeps_its_own_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'nobody_has_this'") as caught:
        load("nobody_has_this")
    assert explained(caught.value) is None


def test_a_broken_package_is_not_called_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"numpy\.no_such_part") as caught:
        load("numpy.no_such_part")
    assert explained(caught.value) is None


def test_an_opencv_that_lacks_a_system_library_is_answered_with_both_ways_out() -> None:
    lacking = ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
    message = str(explained(lacking))
    assert re.search(r"OpenCV can't be loaded \(libGL.*apt-get install libgl1 .*python-headless", message)
    assert explained(ImportError("libfoo.so.1: cannot open shared object file")) is None


_BLOCKED = sorted({module for name, layer in LAYERS.items() if name != "base" for module in layer.modules})
_WITH_THE_BASE_ALONE = f"""
import sys
sys.modules.update(dict.fromkeys({_BLOCKED!r}))
from harcache.cli import main
main(prog_name="harcache")
"""


def _with_the_base_alone(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", _WITH_THE_BASE_ALONE, *arguments], cwd=folder, capture_output=True, text=True
    )


def test_readers_need_the_base_layer_alone(own_demo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    project = own_demo.data.parents[1]
    for stage in ("detections", "poses"):
        (own_demo.data / stage).rename(tmp_path / stage)
    for command in (["--help"], ["params"], ["train", "--help"], ["cache", "info", "demo"]):
        done = _with_the_base_alone(project, *command)
        assert (done.returncode, done.stderr) == (0, "")
    assert "rgb.zarr" in done.stdout
    whole = _with_the_base_alone(project, "cache", "digest", "demo")
    assert whole.stdout.endswith("total\n")
    assert _with_the_base_alone(project, "cache", "verify", "demo").returncode == 0


@pytest.mark.parametrize(
    ("command", "layer"),
    [
        ("demo", "extract"),
        ("index demo", "extract"),
        ("rgb demo", "extract"),
        ("report demo", "extract"),
        ("predict x.mp4 --checkpoint x.pt", "extract"),
        ("train rgb demo", "train"),
        ("evaluate demo", "train"),
        ("models", "train"),
    ],
)
def test_a_command_that_needs_more_says_in_one_line_what_installs_it(
    tmp_path: Path, command: str, layer: str
) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    done = _with_the_base_alone(tmp_path, *command.split())
    assert done.returncode == 1
    assert re.fullmatch(
        rf"Error: the Python package \S+ is not installed; run: pip install 'harcache\[{layer}\]'\n",
        done.stderr,
    )


def test_names_for_training_say_what_they_need() -> None:
    script = f"import sys; sys.modules.update(dict.fromkeys({_BLOCKED!r}))\n" + (
        "from harcache import cache, models\n"
        "for package, name in ((cache, 'ClipLoader'), (models, 'EPAMNet')):\n"
        "    try: getattr(package, name)\n"
        "    except ImportError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    told = "MissingPartError the Python package torch is not installed; run: pip install 'harcache[train]'\n"
    assert done.stdout == 2 * told

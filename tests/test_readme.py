"""What the README tells a user to write is what the program takes."""

import re
from pathlib import Path

import yaml

from pipeline.params import load_params

_ROOT = Path(__file__).parents[1]
_README = (_ROOT / "README.md").read_text(encoding="utf-8")


def test_the_parameters_shown_for_ones_own_videos_are_accepted(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", _README, re.DOTALL)
    assert block is not None
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(block[1]) | {"training": {}}))
    params = load_params(path, dataset="mine")
    assert params.index.layout == "folder"
    assert params.train is None


def test_the_commands_shown_first_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^make (\w+)", _README, re.MULTILINE)
    assert targets[:2] == ["demo", "test"]
    makefile = (_ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)

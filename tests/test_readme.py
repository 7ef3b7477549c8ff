"""What the README says first is so: its two commands, and figures that the page of benchmarks has too."""

import re
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_README = (_ROOT / "README.md").read_text(encoding="utf-8")


def test_the_commands_shown_first_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^make (\w+)", _README, re.MULTILINE)
    assert targets[:2] == ["demo", "test"]
    makefile = (_ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_figures_of_the_comparison_stand_in_the_page_of_benchmarks() -> None:
    table = _README.partition("## How it compares")[2].partition("\n## ")[0]
    measured = set(re.findall(r"[\d,.]*\d", (_ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")))
    figures = set(re.findall(r"(?<![\w,.])\d[\d,.]*\d", table.replace("EPAM-Net", "")))
    assert len(figures) >= 12
    assert figures <= measured, f"measured anew? write them here too: {sorted(figures - measured)}"

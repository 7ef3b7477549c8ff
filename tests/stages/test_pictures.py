"""The colour-blind tell colours of pictures and of the report apart, and bars are as high as they count."""

import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache.stages.pictures.charts import histogram
from harcache.stages.pictures.drawing import COLOURS, WHITE
from harcache.stages.pictures.matrix import confusion_matrix

_STYLE = (Path(__file__).parents[2] / "stages" / "pictures" / "templates" / "colours.css").read_text()
# Machado, Oliveira and Fernandes 2009, severity 1: what is left of linear red, green and blue.
_SEEN = {
    "all": np.eye(3),
    "no red": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "no green": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "no blue": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
_TO_XYZ = [[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]
_WHITE_POINT = (0.95047, 1, 1.08883)
_NOTICED = 2.3  # a distance in CIELAB that people just notice


def _lab(colour: tuple[int, ...], seen: str) -> np.ndarray:
    """CIELAB (3,) of an sRGB colour, 0 to 255, as somebody sees it."""
    value = np.array(colour) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = np.array(_TO_XYZ) @ np.clip(np.array(_SEEN[seen]) @ linear, 0, 1) / _WHITE_POINT
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _nearest(colours: list[tuple[int, ...]], seen: str) -> float:
    labs = [_lab(colour, seen) for colour in colours]
    return min(float(np.linalg.norm(one - other)) for one, other in combinations(labs, 2))


def _of_style(scheme: str) -> list[tuple[int, ...]]:
    """Ground, first and second line of the report's charts."""
    return _named(scheme, "ground", "first", "second")


def _named(scheme: str, *names: str) -> list[tuple[int, ...]]:
    light, dark = _STYLE.split("@media (prefers-color-scheme: dark)")[:2]
    text = {"light": light, "dark": dark}[scheme]
    found = [re.search(rf"--{name}: #(\w{{6}})", text)[1] for name in names]  # type: ignore[index]
    return [tuple(bytes.fromhex(one)) for one in found]


@pytest.mark.parametrize("seen", _SEEN)
def test_colours_are_far_apart_for_every_kind_of_sight(seen: str) -> None:
    assert _nearest([*COLOURS, WHITE], seen) > 6 * _NOTICED
    for scheme in ("light", "dark"):
        assert _nearest(_of_style(scheme), seen) > 20 * _NOTICED


def test_red_and_green_of_one_light_would_be_found_too_near() -> None:
    reds_and_greens: list[tuple[int, ...]] = [(200, 80, 40), (120, 130, 40)]
    assert _nearest(reds_and_greens, "all") > 20 * _NOTICED
    assert _nearest(reds_and_greens, "no green") < 6 * _NOTICED


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60))
def test_of_whole_numbers_every_bar_counts_equally_many(values: list[int]) -> None:
    svg = histogram(values, "frames", "clips")
    bars = re.findall(r"<title>([\d,]+)(?: to ([\d,]+))?: (\d+) clips</title>", svg)
    assert 1 <= len(bars) <= 24
    spans = [(int(first.replace(",", "")), int((last or first).replace(",", ""))) for first, last, _ in bars]
    assert len({last - first for first, last in spans}) == 1
    for (first, last), (_, _, count) in zip(spans, bars, strict=True):
        assert int(count) == sum(first <= value <= last for value in values)
    assert sum(int(count) for *_, count in bars) == len(values)


_SVG = "{http://www.w3.org/2000/svg}"


@given(st.integers(1, 70), st.integers(0, 2**32))
def test_a_confusion_matrix_has_a_cell_for_each_count_that_says_and_shows_it(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, (classes, classes)) * (rng.random((classes, classes)) < 0.2)
    names = [f"class {number}" for number in range(classes)]
    svg = ElementTree.fromstring(confusion_matrix(counts, names, "epam"))
    (cells,) = (group for group in svg.iter(f"{_SVG}g") if group.get("class") == "cells")
    found = np.zeros_like(counts)
    for cell in cells:
        row, column = int(cell.get("y", "")), int(cell.get("x", ""))
        found[row, column] = counts[row, column]
        of = counts[row].sum()
        said = "right" if row == column else f"taken for class {column}"
        assert cell.findtext(f"{_SVG}title") == f"class {row}: {counts[row, column]} of {of} clips {said}"
        assert float(cell.get("fill-opacity", "")) == pytest.approx(
            (counts[row, column] / of) ** 0.5, abs=0.01
        )
    assert (found == counts).all()


def test_names_of_classes_stay_text_in_a_picture_of_its_own_and_long_ones_are_cut() -> None:
    names = ['</svg><b>"&', "\x00\x1b[2J", "洗衣服" * 9, "x" * 99]
    picture = confusion_matrix(np.eye(4, dtype=int), names, "<b>", alone=True)
    svg = ElementTree.fromstring(picture)
    assert "<b>" not in picture and picture.count("</svg>") == 1
    titles = [title.text for title in svg.iter(f"{_SVG}title")]
    assert [str(title).partition(": ")[0] for title in titles] == [names[0], "��[2J", *names[2:]]
    written = [text.text for text in svg.iter(f"{_SVG}text")]
    assert sum(str(text).endswith("…") for text in written) == 2 and "var(--ground)" in str(svg[0].text)


def _luminance(colour: np.ndarray) -> float:
    value = colour / 255
    return float(np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4) @ _TO_XYZ[1])


def _contrast(first: np.ndarray, second: np.ndarray) -> float:
    """As WCAG has it, 1 to 21."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_share_is_read_on_its_shade_in_light_and_in_dark(scheme: str) -> None:
    ground, first, text = map(np.array, _named(scheme, "ground", "first", "text"))
    inks = {"text": text, "ink": np.array([0x14, 0x18, 0x1D]), "ground": ground}
    for share in range(1, 101):
        svg = ElementTree.fromstring(confusion_matrix(np.array([[share, 100 - share], [0, 1]]), "ab", "epam"))
        ink = next(
            str(group.get("class"))
            for group in svg.iter(f"{_SVG}g")
            if group.get("class") in inks and group.findtext(f"{_SVG}text") == str(share)
        )
        shade = first * (share / 100) ** 0.5 + ground * (1 - (share / 100) ** 0.5)
        assert _contrast(inks[ink], shade) > 3.9

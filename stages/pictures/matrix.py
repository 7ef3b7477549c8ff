"""A confusion matrix as SVG: shares by shade, and by number where there is room for numbers.

Texts come in two sizes, of which the style shows one: all of them for a wide screen, and for a phone as many
as can be read there. Shades are finer near zero, so that a single error among many is seen.
"""

from collections.abc import Sequence
from itertools import accumulate
from unicodedata import east_asian_width
from xml.etree.ElementTree import Element

import numpy as np
from markupsafe import Markup

from harcache.stages.pictures import template
from harcache.stages.pictures.svg import add, as_markup, write

__all__ = ["confusion_matrix"]

_WIDTH = 360  # units: pixels of a phone's screen; larger ones scale them
_LEFT, _TOP, _RIGHT, _BOTTOM = 112, 32, 4, 24  # what names, numbers and the key to shades take
_SIDE = _WIDTH - _LEFT - _RIGHT
_FONT, _FINE = 9.0, 3.3  # units: read on a phone, and on a screen three times as wide
_NUMBER, _FINE_NUMBER = 8.0, 2.9  # the same of shares in cells
_LETTER, _WIDE, _LINE = 0.6, 1.0, 1.2  # widths of letters, and a line's height, of a font's size
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # from one class with a name to the next
_KEY = (0.01, 0.05, 0.2, 0.5, 1.0)
_MIDDLE, _DARK = 0.42, 0.77  # shares from which dark ink is read best in dark, and no longer in light
_SMALL, _CELL, _LARGE = 600, 28, (800, 1152)  # pixels of the whole, of a class, and of the whole for many


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], network: str, alone: bool = False) -> Markup:
    """Draw what ``network`` said of clips: ``counts`` (classes, classes) int, rows the true classes.

    A cell's shade is the part of the row's clips. ``alone``: with its style in it, for a file of its own.
    """
    # XML has no place for control characters.
    names = ["".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name) for name in classes]
    cell = _SIDE / len(names)
    share_font = min(_FONT, 0.55 * cell)
    fits = share_font >= _NUMBER
    pixels = _SMALL if fits else min(max(_CELL * len(names), _LARGE[0]), _LARGE[1])
    words_font = _FONT * _SMALL / pixels
    clips = int(counts.sum())
    title = f"{network}: top-1 {counts.trace() / max(clips, 1):.1%} of {clips:,} clips"
    svg = _frame(title, pixels)
    if alone:
        add(svg, "style", {}).text = template("colours.css") + template("matrix.css")
    _cells(svg, counts, names)
    _grid(svg, len(names))
    if share_font >= _FINE_NUMBER:
        _shares(svg, counts, share_font, "" if fits else "fine")
    if fits:
        _texts(svg, "", title, _FONT, names, _FONT)
    else:
        _texts(svg, "fine", title, words_font, names, max(_FINE, min(words_font, cell / _LINE)))
        _texts(svg, "coarse", title, _FONT, names, _FONT)
    return as_markup(svg)


def _frame(title: str, width: int) -> Element:
    height = _TOP + _SIDE + _BOTTOM
    said = f"Confusion matrix of {title}; rows are the true classes, columns the predicted ones"
    size = {"viewBox": f"0 0 {_WIDTH} {height}", "width": width, "height": round(width * height / _WIDTH)}
    kind = {"xmlns": "http://www.w3.org/2000/svg", "class": "matrix", "role": "img", "aria-label": said}
    texts = {name: str(value) for name, value in (kind | size).items()}
    return Element("svg", texts)


def _texts(svg: Element, kind: str, title: str, font: float, names: Sequence[str], names_font: float) -> None:
    group = add(svg, "g", {"class": f"text {kind}".strip()})
    _words(group, title, font)
    _names(group, names, names_font)


def _words(parent: Element, title: str, font: float) -> None:
    """Write the title and the key to shades."""
    group, top = add(parent, "g", {"font-size": font}), _TOP + _SIDE + 9
    write(group, _LEFT + _SIDE / 2, _TOP - 12 - font, title, "middle")
    write(group, _LEFT - 3, _TOP - 6, "actual ↓, said →", "end")
    write(group, _LEFT - 3, top + font - 1, "of a class's clips", "end")
    for number, share in enumerate(_KEY):
        left = _LEFT + number * _SIDE / len(_KEY)
        shade = {"class": "cells", "fill-opacity": f"{share**0.5:.2f}"}
        add(group, "rect", shade, x=left, y=top, width=1.5 * font, height=font)
        write(group, left + 2 * font, top + font - 1, f"{share:.0%}", "start")


def _names(parent: Element, names: Sequence[str], font: float) -> None:
    cell, digits = _SIDE / len(names), _LETTER * font * len(str(len(names) - 1))
    left = _LEFT - 3 - digits - 0.5 * font
    group = add(parent, "g", {"font-size": font})
    for number in range(0, len(names), _step(_LINE * font, cell)):
        base = _TOP + (number + 0.5) * cell + 0.35 * font
        write(group, _LEFT - 3, base, str(number), "end")
        write(group, left, base, _shortened(names[number], left / font), "end")
    for number in range(0, len(names), _step(1.25 * digits, cell)):
        write(group, _LEFT + (number + 0.5) * cell, _TOP - 6, str(number), "middle")


def _step(room: float, cell: float) -> int:
    """Return the classes from one label to the next one, where each needs so much ``room``."""
    return next((step for step in _STEPS if step * cell >= room - 1e-9), _STEPS[-1])


def _shortened(name: str, room: float) -> str:
    """Return as much of a name as has ``room``, in sizes of the font."""
    widths = accumulate(_WIDE if east_asian_width(letter) in "WF" else _LETTER for letter in name)
    fitting = sum(width <= room for width in widths)
    return name if fitting == len(name) else name[: fitting - 1] + "…"


def _cells(svg: Element, counts: np.ndarray, names: Sequence[str]) -> None:
    clips = counts.sum(axis=1)
    scale = f"translate({_LEFT} {_TOP}) scale({_SIDE / len(names):.5f})"
    group = add(svg, "g", {"class": "cells", "transform": scale})
    for row, column in np.argwhere(counts > 0).tolist():
        count, of = int(counts[row, column]), int(clips[row])
        shade = {"fill-opacity": f"{(count / of) ** 0.5:.2f}"}
        rect = add(group, "rect", shade, x=column, y=row, width=1, height=1)
        said = "right" if row == column else f"taken for {names[column]}"
        add(rect, "title", {}).text = f"{names[row]}: {count:,} of {of:,} clips {said}"


def _grid(svg: Element, count: int) -> None:
    cell = _SIDE / count
    places = [cell * number for number in [*range(0, count, _step(_LINE * _FONT, cell)), count]]
    across = "".join(f"M{_LEFT} {_TOP + place:.1f}h{_SIDE}" for place in places)
    down = "".join(f"M{_LEFT + place:.1f} {_TOP}v{_SIDE}" for place in places)
    add(svg, "path", {"class": "grid", "d": across + down})


def _shares(svg: Element, counts: np.ndarray, font: float, kind: str) -> None:
    """Write each share in percent, in the colour that is read best on its shade in light and in dark."""
    cell = _SIDE / len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    group = add(svg, "g", {"class": kind, "font-size": font})
    # The colour is for programs that know no style sheet.
    colours = {"class": "text"}, {"class": "ink"}, {"class": "ground", "fill": "#ffffff"}
    text, ink, ground = (add(group, "g", colour) for colour in colours)
    for row, column in np.argwhere(counts > 0).tolist():
        share = shares[row, column]
        place = _LEFT + (column + 0.5) * cell, _TOP + (row + 0.5) * cell + 0.35 * font
        on = text if share < _MIDDLE else ink if share < _DARK else ground
        write(on, *place, f"{100 * share:.0f}", "middle")

"""The report's charts, as SVG that stands in the page: text stays sharp and selectable on any screen.

Drawn by hand, since the page's own style then colours them, in light and in dark, without a script.
"""

import math
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from harcache.stages.pictures.svg import add, as_markup, write

__all__ = ["histogram", "lines"]

_WIDTH, _HEIGHT = 360, 190  # of a phone's screen; larger ones scale it
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 38  # what axes and their text take
_BINS = 24
_MARK = 2.5  # radius of a point


def histogram(values: Sequence[float] | np.ndarray, label: str, of: str) -> Markup:
    """Return bars that say how many of ``of`` (such as "clips") have which ``label``, "length in frames".

    ``values`` are finite, and get at most 24 bars of one width; of whole numbers each bar has equally many,
    since some would else be higher for having one more.
    """
    numbers = np.asarray(values, dtype=np.float64)
    low, high = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 1.0)
    whole = bool((numbers == numbers.round()).all())
    each = math.ceil((high - low + 1) / _BINS)
    equal = np.linspace(low, max(high, low + 1e-6), _BINS + 1)
    edges = np.arange(low - 0.5, high + each, each) if whole else equal
    counts, _ = np.histogram(numbers, edges)
    svg, area = _frame(f"{label}: {len(numbers)} {of}")
    peak = max(int(counts.max()), 1)
    step = area.width / len(counts)
    for number, count in enumerate(counts.tolist()):
        height = area.height * count / peak
        first, last = edges[number] + whole / 2, edges[number + 1] - whole / 2
        span = f"{first:g}" if first == last else f"{_short(first)} to {_short(last)}"
        bar = add(
            svg,
            "rect",
            {"class": "bar", "x": area.left + number * step + 0.5, "y": area.bottom - height},
            width=max(step - 1, 0.5),
            height=height,
        )
        add(bar, "title", {}).text = f"{span}: {count} {of}"
    shown = (edges[:-1] + 0.5 if whole else edges).tolist()
    for number in sorted({0, len(shown) // 2, len(shown) - 1}):
        x = area.left + (number + (0.5 if whole else 0)) * step
        write(svg, x, area.bottom + 15, _short(shown[number]), "end" if x > area.right - 9 else "middle")
    _scale(svg, area, 0, peak, f"{peak:,}")
    write(svg, (area.left + area.right) / 2, _HEIGHT - 5, label, "middle")
    return as_markup(svg)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], label: str, top: float | None = None
) -> Markup:
    """Return a line for each of at most two ``series`` of (epoch, value); the second one is dashed.

    The value axis goes from 0 to ``top``, by default the largest value; what is no number is left out.
    """
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    points = [point for one in finite.values() for point in one]
    first, last = min((x for x, _ in points), default=0), max((x for x, _ in points), default=1)
    highest = top or max((y for _, y in points), default=1) or 1
    svg, area = _frame(f"{label} by epoch: {' and '.join(series)}")

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        return area.left + area.width * across, area.bottom - area.height * min(y / highest, 1)

    for number, (name, one) in enumerate(finite.items()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in one))
        add(svg, "polyline", {"class": f"line line{number}", "points": path})
        for x, y in one:
            cx, cy = place(x, y)
            mark = add(svg, "circle", {"class": f"mark{number}", "cx": cx, "cy": cy}, r=_MARK)
            add(mark, "title", {}).text = f"{name}, epoch {x:g}: {y:.4g}"
    for x in sorted({first, last}):
        write(svg, place(x, 0)[0], area.bottom + 15, f"{x:g}", "middle")
    _scale(svg, area, 0, highest, f"{highest:.3g}")
    write(svg, (area.left + area.right) / 2, _HEIGHT - 5, f"epoch; {label}", "middle")
    return as_markup(svg)


class _Area:
    """Where a chart's data lies, in the units of its view box."""

    left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM
    width, height = right - left, bottom - top


def _frame(label: str) -> tuple[ElementTree.Element, _Area]:
    """Return an empty chart, which a screen reader calls ``label``."""
    view = f"0 0 {_WIDTH} {_HEIGHT}"
    svg = ElementTree.Element("svg", {"viewBox": view, "role": "img", "aria-label": label})
    area = _Area()
    add(svg, "path", {"class": "axis", "d": f"M{area.left} {area.top}V{area.bottom}H{area.right}"})
    return svg, area


def _scale(svg: ElementTree.Element, area: _Area, low: float, high: float, text: str) -> None:
    write(svg, area.left - 5, area.top + 8, text, "end")
    write(svg, area.left - 5, area.bottom + 2, f"{low:g}", "end")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

"""A confusion matrix as a picture: shares by colour, and by number where there is room for numbers.

One hue from white to dark reads alike to the colour-blind and in print; its steps are finer near zero, so
that single errors among a hundred classes are seen.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.files import commit_file, partial_path

__all__ = ["draw_confusion"]

_NUMBERED = 24  # classes up to which every cell says its share
_DARK = 0.4  # share from which white is read better on the cell than black
_LONGEST = 40  # letters of a name
_DPI = 110


def draw_confusion(path: Path, counts: np.ndarray, names: Sequence[str], title: str) -> None:
    """Write a PNG of ``counts`` (classes, classes), rows the true classes, each row as parts of its clips."""
    # Slow to import, and without a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = count <= _NUMBERED
    cell, font = (0.5, 9) if few else (0.16, 6.5)  # inches, points
    side = max(3.0, cell * count)
    short = [name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…" for name in names]
    labels = [f"{name}  {number}" for number, name in enumerate(short)]
    figure = Figure((side + 1.5, side))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_yticks(range(count), labels, fontsize=font, parse_math=False)
    columns = short if few else [str(number) for number in range(count)]
    axes.set_xticks(range(count), columns, rotation=90, fontsize=font, parse_math=False)
    axes.set_xlabel("predicted", fontsize=font + 3)
    axes.set_ylabel("actual", fontsize=font + 3)
    axes.set_title(title, fontsize=font + 4, parse_math=False)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.8", linewidth=0.6 if few else 0.3)
    axes.tick_params(which="minor", length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.02, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.set_label("part of the class's clips", fontsize=font + 1)
    if few:
        for row, column in np.argwhere(counts > 0):
            share = shares[row, column]
            colour = "white" if share > _DARK else "black"
            axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=colour, fontsize=font - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(partial_path(path), format="png", dpi=_DPI, bbox_inches="tight")
    commit_file(partial_path(path), path)

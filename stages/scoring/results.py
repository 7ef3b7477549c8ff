"""What an evaluation leaves behind: tables for people and `dvc plots`, and all scores for other programs.

The scores are an .npz: NumPy alone reads it, without running code in it, and it loses no digit, where a CSV
of NTU 120's scores would be several times as large.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harcache.pipeline.base.files import write_atomically
from harcache.pipeline.base.tables import write_json, write_table
from harcache.pipeline.clips import Clip
from harcache.stages.pictures.matrix import confusion_matrix
from harcache.stages.scoring.accuracy import class_measures, count_confusions, hardest_pairs
from harcache.stages.shared.workspace import Workspace

__all__ = ["Cost", "Outputs", "Scored", "write_results"]

_CLASS_COLUMNS = ("label", "name", "clips", "recall", "precision", "most_taken_for")


@dataclass(frozen=True, slots=True)
class Cost:
    """A network's size and speed, for one clip of one sample: ``latency`` is seconds on ``device``."""

    parameters: int
    multiply_adds: int
    latency: float
    device: str


@dataclass(frozen=True, slots=True)
class Scored:
    """What a network says of the test clips: ``scores`` (clips, classes) float64, the higher the likelier."""

    name: str
    scores: np.ndarray
    cost: Cost | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """The files of one evaluation. ``folder`` takes scores, tables and pictures."""

    metrics: Path
    predictions: Path
    folder: Path

    @classmethod
    def of(cls, workspace: Workspace) -> "Outputs":
        """Return those that dvc.yaml names."""
        return cls(workspace.metrics, workspace.predictions, workspace.evaluation)

    @classmethod
    def of_amfi(cls, workspace: Workspace) -> "Outputs":
        """Return those that dvc.yaml names for AMFI-Net and its streams."""
        return cls.under(workspace.evaluation / "amfi")

    @classmethod
    def under(cls, folder: Path) -> "Outputs":
        """Return files of their own below ``folder``."""
        return cls(folder / "metrics.json", folder / "predictions.csv", folder)


def write_results(
    outputs: Outputs,
    metrics: Mapping[str, Any],
    clips: Sequence[Clip],
    labels: np.ndarray,
    classes: Sequence[str],
    scored: Sequence[Scored],
    shown: Scored,
) -> None:
    """Write everything; ``shown`` is the one whose predictions `dvc plots` shows.

    ``labels``: (clips,) int64.
    """
    said = [
        (clip.id, classes[label], classes[number])
        for clip, label, number in zip(clips, labels, shown.scores.argmax(axis=1), strict=True)
    ]
    write_table(outputs.predictions, ("id", "actual", "predicted"), said)
    _write_scores(outputs.folder / "scores.npz", clips, labels, classes, scored)
    _write_tables(outputs.folder, labels, classes, scored)
    write_json(outputs.metrics, metrics, sort_keys=True)


def _write_scores(
    path: Path, clips: Sequence[Clip], labels: np.ndarray, classes: Sequence[str], scored: Sequence[Scored]
) -> None:
    """``id`` (clips,), ``label`` (clips,) int64, ``classes``, and by network (clips, classes) float32."""
    arrays: dict[str, Any] = {one.name: one.scores.astype(np.float32) for one in scored}
    arrays |= {"id": np.array([clip.id for clip in clips]), "label": labels, "classes": np.array(classes)}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())


def _write_tables(folder: Path, labels: np.ndarray, classes: Sequence[str], scored: Sequence[Scored]) -> None:
    by_class, by_pair, costs = [], [], []
    for one in scored:
        counts = count_confusions(one.scores.argmax(axis=1), labels, len(classes))
        write_table(
            folder / "tables" / f"confusion-{one.name}.csv",
            ("actual", *classes),
            ((name, *row) for name, row in zip(classes, counts.tolist(), strict=True)),
        )
        picture = confusion_matrix(counts, classes, one.name, alone=True)
        write_atomically(folder / "pictures" / f"confusion-{one.name}.svg", picture.encode())
        by_class += [(one.name, *(row[c] for c in _CLASS_COLUMNS)) for row in class_measures(counts, classes)]
        for pair in hardest_pairs(counts):
            names = classes[pair.first], classes[pair.second]
            taken = pair.first_as_second, pair.second_as_first
            by_pair.append((one.name, *names, *taken, pair.clips, f"{pair.rate:.4f}"))
        if one.cost is not None:
            cost = one.cost
            milliseconds = f"{1000 * cost.latency:.2f}"
            costs.append((one.name, cost.parameters, cost.multiply_adds, milliseconds, cost.device))
    tables = folder / "tables"
    write_table(tables / "classes.csv", ("network", *_CLASS_COLUMNS), by_class)
    taken_for = ("network", "first", "second", "first_as_second", "second_as_first", "clips", "rate")
    write_table(tables / "pairs.csv", taken_for, by_pair)
    costs_of = ("network", "parameters", "multiply_adds", "latency_ms", "device")
    write_table(tables / "networks.csv", costs_of, costs)

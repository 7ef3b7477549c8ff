"""The sections on training and accuracy, from the tables that training and evaluation wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.tables import read_json, read_rows, read_table
from harcache.pipeline.params.networks import NETWORKS, WHOLE_NETWORKS
from harcache.stages.pictures.charts import lines
from harcache.stages.pictures.matrix import confusion_matrix
from harcache.stages.reporting.blocks import Table, Value, percent
from harcache.stages.reporting.contents import AGAIN, Contents
from harcache.stages.scoring.results import Outputs

__all__ = ["evaluations", "trainings"]

_PAIRS = 20
_DIGITS = 12  # of a count of clips, so that sums fit in 64 bits
_ROOM = 4_000_000  # letters of an evaluation's confusion matrices: those of 400 classes take a megabyte each


def trainings(contents: Contents) -> list[dict[str, Any]]:
    """Return the curves of each network that was trained, and what its log says of its speed."""
    found = []
    for network in NETWORKS:
        folder = contents.workspace.training(network)
        plots = {name: folder / "plots" / f"{name}.csv" for name in ("loss", "accuracy")}
        if not all(path.is_file() for path in plots.values()):
            continue
        charts = [
            (f"{network}: {name}", lines(_curve(path, name), name, 1.0 if name == "accuracy" else None))
            for name, path in plots.items()
        ]
        log = folder / "live" / "metrics.json"
        found.append({"network": network, "charts": charts, "speed": _speed(log) if log.is_file() else ""})
    return found


def _curve(path: Path, name: str) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {"train": [], "test": []}
    for row in _rows(path, ("epoch", "split", name)):
        series.setdefault(row[1], []).append((_number(path, row[0]), _number(path, row[2])))
    return {split: points for split, points in series.items() if points}


def _speed(path: Path) -> str:
    log = _json(path)
    if "samples_per_second" not in log:
        return ""
    waits = f", {log['wait_share']:.1%} of the time waiting for batches" if "wait_share" in log else ""
    return f"{log['samples_per_second']:.1f} clips a second in the last epoch{waits}"


def evaluations(contents: Contents) -> list[dict[str, Any]]:
    """Return tables and pictures of each evaluation that there is."""
    named = (
        ("Accuracy", Outputs.of(contents.workspace)),
        ("Accuracy of AMFI-Net", Outputs.of_amfi(contents.workspace)),
    )
    return [_evaluation(title, outputs) for title, outputs in named if outputs.metrics.is_file()]


def _evaluation(title: str, outputs: Outputs) -> dict[str, Any]:
    metrics = _json(outputs.metrics)
    tables = outputs.folder / "tables"
    networks = [path.stem.removeprefix("confusion-") for path in sorted(tables.glob("confusion-*.csv"))]
    # As the evaluation chooses what `dvc plots` shows.
    whole = [name for name in networks if name in WHOLE_NETWORKS]
    shown = next(iter(whole or networks[-1:]), None)
    return {
        "accuracy": _accuracy_table(title, metrics, tables / "networks.csv"),
        "others": _other_measures(metrics),
        "shown": shown,
        "matrices": _matrices(tables, sorted(networks, key=lambda name: name != shown)),
        "by_class": _by_class(tables / "classes.csv", shown),
        "pairs": _hardest(tables / "pairs.csv", shown),
    }


def _matrices(folder: Path, networks: Sequence[str]) -> list[tuple[str, Markup | None]]:
    """Return the confusion matrix of each network, None for those that would make the page too large."""
    found: list[tuple[str, Markup | None]] = []
    room = _ROOM
    for name in networks:
        classes, counts = _confusions(folder / f"confusion-{name}.csv")
        picture = confusion_matrix(counts, classes, name)
        room -= len(picture)
        found.append((name, picture if room >= 0 else None))
    return found


def _confusions(path: Path) -> tuple[list[str], np.ndarray]:
    """Return the class names, and how many clips of each (rows) are taken for which: (classes, classes)."""
    header, *rows = [fields for _, fields in read_rows(path, remedy=AGAIN)] or [[]]
    classes = header[1:]
    square = [row[:1] for row in rows] == [[name] for name in classes]
    if not classes or not square or any(len(row) != len(header) for row in rows):
        raise HarcacheError(f"{path}: expected a row and a column for each class{AGAIN}")
    return classes, np.array([[_count(path, text) for text in row[1:]] for row in rows], np.int64)


def _other_measures(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was measured beside whole networks: stages against the truth, and parts of the clips."""
    against = [
        (f"{group} {name}, against the truth", f"{value:.3f}")
        for group in ("detect", "pose")
        for name, value in metrics.get(group, {}).items()
    ]
    part = {name: top for name, top in metrics.get("top1", {}).items() if not _is_network(name, metrics)}
    return against + [(f"top-1 of {name.replace('_', ' ')}", f"{top:.1%}") for name, top in part.items()]


def _is_network(name: str, metrics: Mapping[str, Any]) -> bool:
    return name in metrics.get("mean_class", {})


def _accuracy_table(title: str, metrics: Mapping[str, Any], costs: Path) -> Table:
    columns = ("network", "parameters", "multiply_adds", "latency_ms", "device")
    cost = {row[0]: row for row in _rows(costs, columns)} if costs.is_file() else {}
    rows = []
    for name, top in metrics.get("top1", {}).items():
        if not _is_network(name, metrics):
            continue
        row: list[Any] = [name, percent(top)]
        row += [percent(metrics[key][name]) for key in ("top5", "mean_class")]
        if name in cost:
            latency = _number(costs, cost[name][3])
            row += [int(cost[name][1]), Value(int(cost[name][2]), f"{int(cost[name][2]) / 1e9:.3f}")]
            row.append(Value(latency, f"{latency:.1f} ({cost[name][4]})"))
        rows.append(row + [""] * (7 - len(row)))
    clips = metrics.get("test", {}).get("clips")
    header = ("network", "top-1", "top-5", "mean class", "parameters", "G multiply-adds", "ms a clip")
    return Table(title + (f" on {clips:,} test clips" if clips else ""), header, rows)


def _by_class(path: Path, network: str | None) -> Table | None:
    if network is None or not path.is_file():
        return None
    columns = ("network", "label", "name", "clips", "recall", "precision", "most_taken_for")
    rows = [
        (row[2], int(row[3]), *(_share(path, text) for text in row[4:6]), row[6])
        for row in _rows(path, columns)
        if row[0] == network
    ]
    header = ("class", "test clips", "recall", "precision", "most taken for")
    return Table(f"Classes as {network} tells them", header, rows)


def _hardest(path: Path, network: str | None) -> Table | None:
    if network is None or not path.is_file():
        return None
    columns = ("network", "first", "second", "first_as_second", "second_as_first", "clips", "rate")
    rows = [
        (row[1], row[2], *map(int, row[3:6]), _share(path, row[6]))
        for row in _rows(path, columns)
        if row[0] == network
    ]
    header = ("first", "second", "first taken for second", "second taken for first", "clips of both", "rate")
    return Table(f"Hardest pairs for {network}", header, rows[:_PAIRS]) if rows else None


def _share(path: Path, text: str) -> Value | str:
    """Return a table's share; one that could not be computed is empty."""
    return percent(_number(path, text)) if text else ""


def _number(path: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise HarcacheError(f"{path}: '{text}' is no number{AGAIN}") from None


def _count(path: Path, text: str) -> int:
    if not text.isdecimal() or len(text) > _DIGITS:
        raise HarcacheError(f"{path}: '{text}' is no count{AGAIN}")
    return int(text)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, remedy=AGAIN)


def _rows(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """Return the rows of a table as ``columns`` are asked for."""
    return read_table(path, lambda row: [row[name] for name in columns], columns, remedy=AGAIN).rows

"""Report: one page that shows a dataset and all that its stages made of it, to be read without a network.

It shows what is there, so it can be made at any time, and the same files give the same bytes, so that DVC
need not make it again.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from harcache import cache
from harcache.cache.annotations import read_detections
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import write_atomically
from harcache.pipeline.base.tables import read_json, read_rows, read_table
from harcache.pipeline.clips import Clip, read_classes, read_manifest
from harcache.pipeline.work.outcomes import read_counts, read_failures
from harcache.pipeline.work.parts import dataset_lock, read_records
from harcache.stages.pictures import template
from harcache.stages.pictures.charts import histogram, lines
from harcache.stages.pictures.matrix import confusion_matrix
from harcache.stages.pictures.strips import Picture, Strips
from harcache.stages.scoring.results import Outputs
from harcache.stages.shared import contents as caches
from harcache.stages.shared.crop_table import Crop, flag_counts, read_crops
from harcache.stages.shared.units import part_file, rate_file
from harcache.stages.shared.workspace import EXTRACTION, NETWORKS, Workspace

__all__ = ["run"]

_SEED = 0
_SAMPLE = 2000  # clips whose detections are read, which would take minutes for all of NTU 120
_RANDOM, _WORST, _FAILED = 12, 12, 24  # clips with pictures
_LISTED = 500  # rows of failures: the whole list stands in failures/*.csv
_LONGEST = 600  # letters of a reason
_PAIRS = 20
_DIGITS = 12  # of a count of clips, so that sums fit in 64 bits
_ROOM = 4_000_000  # letters of an evaluation's confusion matrices: those of 400 classes take a megabyte each
_AGAIN = "; run the stage that writes it again"
_STYLES = ("colours.css", "report.css", "matrix.css")
_MEANINGS = {
    "nobody": "no person was found",
    "low_confidence": "the keypoints' mean score is low",
    "whole_image": "no box could be made, so the crop is the whole image",
    "outside": "many keypoints lie outside of the image",
    "identity_change": "a person is suddenly somewhere else",
    "rarely_seen": "nobody is found in most of the frames",
    "crowded": "a frame has more persons than max_persons, so some have no poses",
}


class Value(NamedTuple):
    """A cell of a table: what it is sorted by, and its text."""

    sort: float
    text: str


class Table(NamedTuple):
    """A table that a reader can sort; rows hold text, whole numbers and `Value`."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Card(NamedTuple):
    """A clip with its picture, if there is one, and what there is to say of it."""

    id: str
    picture: Picture | None
    lines: Sequence[str]
    flags: Sequence[str] = ()


@dataclass
class _Build:
    """What is there of a dataset; ``missing`` says what is not, and what makes it."""

    workspace: Workspace
    clips: dict[str, Clip]
    classes: dict[str, list[str]]
    crops: dict[str, Crop]
    stores: dict[str, cache.ClipStore]
    missing: list[str] = field(default_factory=list)


def run(workspace: Workspace, out: Path) -> None:
    """Write the report of a dataset to ``out``; HarcacheError without a manifest and for a damaged file."""
    if not workspace.manifest.is_file():
        raise HarcacheError(
            f"{workspace.manifest} is missing; correct the dataset's name, or run "
            f"'harcache index {workspace.dataset}' first"
        )
    with dataset_lock(workspace.data, reading=True):
        content = _render(_page(_build_of(workspace)))
    write_atomically(out, content)
    print(f"report: {out}, {len(content) / 1e6:.1f} MB")


def _build_of(workspace: Workspace) -> _Build:
    clips = {clip.id: clip for clip in read_manifest(workspace.manifest)}
    classes = read_classes(workspace.classes) if workspace.classes.is_file() else {}
    build = _Build(workspace, clips, classes, {}, {})
    if workspace.crops.is_file():
        build.crops = read_crops(workspace.crops)
    for array, folder in (("frames", workspace.rgb), ("volume", workspace.heatmaps)):
        if folder.is_dir():
            try:
                build.stores[array] = cache.open(folder)
            except HarcacheError as error:
                build.missing.append(str(error))
    for stage in EXTRACTION:
        if not workspace.counts(stage).is_file():
            build.missing.append(f"The stage {stage} has not ended: harcache {stage} {workspace.dataset}")
    return build


def _page(build: _Build) -> dict[str, Any]:
    return {
        "dataset": build.workspace.dataset,
        "missing": build.missing,
        "facts": _facts(build),
        "length_chart": histogram(
            [clip.frames for clip in build.clips.values()], "frames of a clip", "clips"
        ),
        "class_tables": _class_tables(build),
        "stages": _stage_table(build),
        "failures": _failures(build),
        "failed": _failed_cards(build),
        "storage": _storage(build),
        "rates": _rates(build),
        "quality": _quality(build),
        "training": _training(build),
        "results": _results(build),
        "random": _random_cards(build),
        "worst": _worst_cards(build),
    }


def _render(page: dict[str, Any]) -> bytes:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    style, script = "".join(map(template, _STYLES)), template("report.js")
    environment = Environment(
        loader=PackageLoader("harcache.stages.pictures"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    inlined = {"style": Markup(style), "script": Markup(script), "policy": policy}
    # A name in a file system need not be text.
    return environment.get_template("report.html").render(page | inlined).encode(errors="backslashreplace")


def _source(text: str) -> str:
    """Return how a content security policy allows this one inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _facts(build: _Build) -> list[tuple[str, str]]:
    clips = build.clips.values()
    frames = sum(clip.frames for clip in clips)
    minutes = sum(clip.frames / clip.fps for clip in clips if clip.fps > 0) / 60
    length = f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"
    sizes = Counter(f"{clip.width} by {clip.height}" for clip in clips)
    rates = Counter(f"{clip.fps:.4g}" for clip in clips)
    facts = [("clips", f"{len(clips):,}"), ("frames", f"{frames:,}"), ("length", length)]
    facts += [("frame size", _commonest(sizes)), ("frames a second", _commonest(rates))]
    facts += [(f"classes of {protocol}", f"{len(names):,}") for protocol, names in build.classes.items()]
    people = {clip.subject for clip in clips} - {None}
    return [*facts, ("performers", f"{len(people):,}")] if people else facts


def _commonest(counts: Counter[str]) -> str:
    if len(counts) < 2:
        return next(iter(counts), "")
    value, count = counts.most_common(1)[0]
    others = "another" if len(counts) == 2 else f"{len(counts) - 1} others"
    return f"{value} ({count / counts.total():.0%}), and {others}"


def _class_tables(build: _Build) -> list[Table]:
    tables = []
    for protocol, names in build.classes.items():
        counts = Counter((clip.label(protocol), clip.split(protocol)) for clip in build.clips.values())
        splits = [name for name in ("train", "val", "test") if any(split == name for _, split in counts)]
        rows = [
            (
                label,
                name,
                *(counts[label, split] for split in splits),
                sum(count for (found, _), count in counts.items() if found == label),
            )
            for label, name in enumerate(names)
        ]
        tables.append(Table(f"Clips of {protocol} by class", ("label", "class", *splits, "all"), rows))
    return tables


def _stage_table(build: _Build) -> Table | None:
    paths = {stage: build.workspace.counts(stage) for stage in EXTRACTION}
    rows = [(stage, *astuple(read_counts(path))) for stage, path in paths.items() if path.is_file()]
    return Table("How the clips of each stage ended", ("stage", "ok", "skipped", "failed"), rows)


def _ends(build: _Build) -> list[tuple[str, str, str, str]]:
    """Return (id, stage, status, reason) of the clips that are not ok, the failed ones first."""
    found = [
        (id, stage, status, reason if len(reason) <= _LONGEST else reason[:_LONGEST] + "…")
        for stage in EXTRACTION
        if build.workspace.failures(stage).is_file()
        for id, status, reason in read_failures(build.workspace.failures(stage))
    ]
    return sorted(found, key=lambda end: end[2] != "failed")


def _failures(build: _Build) -> Table | None:
    ends = _ends(build)
    if not ends:
        return None
    more = f"; the first {_LISTED:,} of {len(ends):,}" if len(ends) > _LISTED else ""
    caption = f"Clips that failed, were skipped or repaired{more}"
    return Table(caption, ("clip", "stage", "status", "reason"), ends[:_LISTED])


def _failed_cards(build: _Build) -> list[Card]:
    """A picture of each clip that failed, as far as there is one.

    A video is opened only after the detect stage has read it whole: others may be why a worker died.
    """
    read = {
        outcome.id
        for record in read_records(build.workspace.detections)
        for outcome in record.outcomes
        if outcome.status == "ok"
    }
    strips = _strips(build, read)
    cards: list[Card] = []
    for id, stage, status, reason in _ends(build)[:_LISTED]:
        picture = strips.of(id) if status == "failed" and len(cards) < _FAILED else None
        if picture:
            cards.append(Card(id, picture, (f"{stage}: {reason}",), _flags(build, id)))
    return cards


def _storage(build: _Build) -> Table | None:
    try:
        held = caches.info(build.workspace)["caches"]
    except HarcacheError as error:
        build.missing.append(str(error))
        return None
    rows = [
        (
            name,
            one["clips"],
            one.get("rows", "not finished"),
            one["parts"],
            _megabytes(one["bytes"]),
            _megabytes(one["decoded_bytes"]) if "decoded_bytes" in one else "",
            Value(one["ratio"], f"1/{one['ratio']}") if one.get("ratio") else "",
            ", ".join(f"{array} {codec}" for array, codec in one.get("codecs", {}).items()),
        )
        for name, one in held.items()
    ]
    columns = ("cache", "clips", "frames", "parts", "MB on disk", "MB decoded", "size", "coded as")
    return Table("What the caches hold", columns, rows)


def _rates(build: _Build) -> Table | None:
    """Return how fast each stage made what it made last."""
    paths = {stage: rate_file(build.workspace.data, stage) for stage in EXTRACTION}
    rows = []
    for stage, path in paths.items():
        if path.is_file():
            rate = _json(path)
            pace = rate["frames"] / max(rate["seconds"], 1e-9)
            kinds = sorted(rate["share"].items(), key=lambda one: -one[1])
            spent = ", ".join(f"{kind} {share:.0%}" for kind, share in kinds)
            rows.append((stage, rate["clips"], rate["frames"], Value(pace, f"{pace:,.0f}"), spent))
    columns = ("stage", "clips", "frames", "frames a second", "of a worker's time")
    return (
        Table("How fast a worker made its parts, in the last run that made some", columns, rows)
        if rows
        else None
    )


def _megabytes(count: int) -> Value:
    return Value(count, f"{count / 1e6:,.1f}")


def _quality(build: _Build) -> dict[str, Any]:
    crops = build.crops.values()
    measured = [crop.quality for crop in crops if crop.quality is not None]
    charts = _detection_charts(build)
    if measured:
        charts += [
            ("Persons kept of a clip", histogram([one.persons for one in measured], "persons", "clips")),
            ("Confidence of poses", histogram([one.confidence for one in measured], "mean score", "clips")),
        ]
    if crops:
        sides = [max(crop.box[2] - crop.box[0], crop.box[3] - crop.box[1]) for crop in crops]
        charts.append(("Size of boxes", histogram(sides, "longer side in pixels", "clips")))
    rows = (
        [
            (flag, _MEANINGS[flag], count, _percent(count / len(crops)))
            for flag, count in flag_counts(crops).items()
        ]
        if measured
        else []
    )
    table = Table("Clips by quality flag", ("flag", "what it says", "clips", "of all"), rows)
    return {"charts": charts, "flags": table if rows else None}


def _detection_charts(build: _Build) -> list[tuple[str, Markup]]:
    places = {
        outcome.id: part_file(build.workspace.detections, record.part)
        for record in read_records(build.workspace.detections)
        for outcome in record.outcomes
        if outcome.status == "ok"
    }
    ids = _sample(sorted(places), _SAMPLE)
    frames = [boxes for id in ids for boxes in read_detections(places[id], id)]
    if not frames:
        return []
    of = "" if len(ids) == len(places) else f", {len(ids):,} random clips"
    scores = np.concatenate(frames)[:, 4]
    return [
        (f"Persons found in a frame{of}", histogram([len(one) for one in frames], "persons", "frames")),
        (f"Confidence of detections{of}", histogram(scores, "score", "boxes")),
    ]


def _training(build: _Build) -> list[dict[str, Any]]:
    """Return the curves of each network that was trained, and what its log says of its speed."""
    found = []
    for network in NETWORKS:
        folder = build.workspace.training(network)
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


def _results(build: _Build) -> list[dict[str, Any]]:
    """Return tables and pictures of each evaluation that there is."""
    named = (
        ("Accuracy", Outputs.of(build.workspace)),
        ("Accuracy of AMFI-Net", Outputs.of_amfi(build.workspace)),
    )
    return [_evaluation(title, outputs) for title, outputs in named if outputs.metrics.is_file()]


def _evaluation(title: str, outputs: Outputs) -> dict[str, Any]:
    metrics = _json(outputs.metrics)
    tables = outputs.folder / "tables"
    networks = [path.stem.removeprefix("confusion-") for path in sorted(tables.glob("confusion-*.csv"))]
    # As the evaluation chooses what `dvc plots` shows.
    whole = [name for name in networks if name in ("epam", "amfi")]
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
    header, *rows = [fields for _, fields in read_rows(path, remedy=_AGAIN)] or [[]]
    classes = header[1:]
    square = [row[:1] for row in rows] == [[name] for name in classes]
    if not classes or not square or any(len(row) != len(header) for row in rows):
        raise HarcacheError(f"{path}: expected a row and a column for each class{_AGAIN}")
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
        row: list[Any] = [name, _percent(top)]
        row += [_percent(metrics[key][name]) for key in ("top5", "mean_class")]
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


def _random_cards(build: _Build) -> list[Card]:
    stored = sorted(set().union(*(store.ids for store in build.stores.values())))
    return _cards(build, _sample(stored, _RANDOM))


def _worst_cards(build: _Build) -> list[Card]:
    """Return the clips with most flags, and among those with equally many the least confident."""
    measured = [crop for crop in build.crops.values() if crop.quality is not None]
    stored = set().union(*(store.ids for store in build.stores.values()))

    def goodness(crop: Crop) -> tuple[int, float, str]:
        assert crop.quality is not None
        return -len(crop.flags), crop.quality.confidence, crop.id

    worst = sorted((crop for crop in measured if crop.id in stored), key=goodness)
    return _cards(build, [crop.id for crop in worst[:_WORST]])


def _cards(build: _Build, ids: Sequence[str]) -> list[Card]:
    strips = _strips(build, ())
    return [Card(id, strips.of(id), _lines(build, id), _flags(build, id)) for id in ids]


def _strips(build: _Build, filmed: Any) -> Strips:
    return Strips(
        build.stores, build.workspace.videos, {id: build.clips[id] for id in filmed if id in build.clips}
    )


def _lines(build: _Build, id: str) -> list[str]:
    """Say of a clip what class it is, how long, and how sure its poses are."""
    said = []
    clip, crop = build.clips.get(id), build.crops.get(id)
    if clip is not None:
        named = {
            build.classes[protocol][label]
            for protocol, label in clip.labels
            if label < len(build.classes.get(protocol, ()))
        }
        said += [" / ".join(sorted(named)), f"{clip.frames:,} frames"]
    if crop is not None and crop.quality is not None:
        persons = "1 person" if crop.quality.persons == 1 else f"{crop.quality.persons} persons"
        said.append(f"{persons}, confidence {crop.quality.confidence:.2f}")
        said.append(f"{crop.quality.dropped} more in single frames" if crop.quality.dropped else "")
    return [text for text in said if text]


def _flags(build: _Build, id: str) -> Sequence[str]:
    return build.crops[id].flags if id in build.crops else ()


def _sample(ids: Sequence[str], count: int) -> list[str]:
    """Choose up to ``count`` ids, always the same of the same ones, in their order."""
    chosen = np.random.default_rng(_SEED).permutation(len(ids))[:count]
    return [ids[number] for number in sorted(chosen.tolist())]


def _percent(part: float) -> Value:
    return Value(part, f"{part:.1%}")


def _share(path: Path, text: str) -> Value | str:
    """Return a table's share; one that could not be computed is empty."""
    return _percent(_number(path, text)) if text else ""


def _number(path: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise HarcacheError(f"{path}: '{text}' is no number{_AGAIN}") from None


def _count(path: Path, text: str) -> int:
    if not text.isdecimal() or len(text) > _DIGITS:
        raise HarcacheError(f"{path}: '{text}' is no count{_AGAIN}")
    return int(text)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, remedy=_AGAIN)


def _rows(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """Return the rows of a table as ``columns`` are asked for."""
    return read_table(path, lambda row: [row[name] for name in columns], columns, remedy=_AGAIN).rows

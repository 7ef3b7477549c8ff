"""The section on storage and speed: what the caches hold, and how fast the stages made it."""

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.tables import read_json
from harcache.stages.reporting.blocks import Table, Value
from harcache.stages.reporting.contents import AGAIN, Contents
from harcache.stages.shared.contents import info
from harcache.stages.shared.rates import rate_file
from harcache.stages.shared.workspace import EXTRACTION

__all__ = ["rate_table", "storage_table"]


def storage_table(contents: Contents) -> Table | None:
    """Return what each cache holds; None, with a note in ``contents.missing``, where there are none."""
    try:
        held = info(contents.workspace)["caches"]
    except HarcacheError as error:
        contents.missing.append(str(error))
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


def rate_table(contents: Contents) -> Table | None:
    """Return how fast each stage made what it made last."""
    paths = {stage: rate_file(contents.workspace.data, stage) for stage in EXTRACTION}
    rows = []
    for stage, path in paths.items():
        if path.is_file():
            rate = read_json(path, remedy=AGAIN)
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

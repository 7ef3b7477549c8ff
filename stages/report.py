"""Report: one page that shows a dataset and all that its stages made of it, to be read without a network.

It shows what is there, so it can be made at any time, and the same files give the same bytes, so that DVC
need not make it again.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from markupsafe import Markup

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.files import write_atomically
from harcache.pipeline.base.progress import say
from harcache.pipeline.work.parts import dataset_lock
from harcache.stages.pictures import template
from harcache.stages.reporting import cards, dataset, quality, results, storage
from harcache.stages.reporting.contents import Contents, read_contents
from harcache.stages.shared.workspace import Workspace

__all__ = ["run"]

_STYLES = ("colours.css", "report.css", "matrix.css")


def run(workspace: Workspace, out: Path) -> None:
    """Write the report of a dataset to ``out``; HarcacheError without a manifest and for a damaged file."""
    if not workspace.manifest.is_file():
        raise HarcacheError(
            f"{workspace.manifest} is missing; correct the dataset's name, or run "
            f"'harcache index {workspace.dataset}' first"
        )
    with dataset_lock(workspace.data, reading=True):
        content = _render(_page(read_contents(workspace)))
    write_atomically(out, content)
    say(f"report: {out}, {len(content) / 1e6:.1f} MB")


def _page(contents: Contents) -> dict[str, Any]:
    return {
        "dataset": contents.workspace.dataset,
        "missing": contents.missing,
        "facts": dataset.facts(contents),
        "length_chart": dataset.length_chart(contents),
        "class_tables": dataset.class_tables(contents),
        "stages": dataset.stage_table(contents),
        "failures": dataset.failure_table(contents),
        "failed": cards.failed_cards(contents),
        "storage": storage.storage_table(contents),
        "rates": storage.rate_table(contents),
        "quality": quality.quality_section(contents),
        "training": results.trainings(contents),
        "results": results.evaluations(contents),
        "random": cards.random_cards(contents),
        "worst": cards.worst_cards(contents),
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

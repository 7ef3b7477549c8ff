"""The parameters as a page: what docs/parameters.md says is what the dataclasses of `pipeline.params` are.

So the page can't fall behind the code; a test compares the two.
"""

import inspect
import json
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from harcache.pipeline.params import AmfiParams, DatasetParams, TrainParams
from harcache.pipeline.params.checks import choice_of, choices_of

__all__ = ["as_markdown"]

_INTRODUCTION = """# Parameters

Every number that a result depends on stands in `params.yaml`: under `datasets.<name>` how the caches of a
dataset are made, under `training.<name>` how EPAM-Net learns from them, under `amfi.<name>` how AMFI-Net
does. A key without a default must be given; one that is unknown or of a wrong kind is an error that names it.
`harcache params` prints this page, which is made from the code.
"""
_SECTIONS: dict[str, type] = {
    "datasets.<name>": DatasetParams,
    "training.<name>": TrainParams,
    "amfi.<name>": AmfiParams,
}


def as_markdown() -> str:
    """Return every section of params.yaml with its keys, their types and defaults."""
    lines = [_INTRODUCTION]
    for key, kind in _SECTIONS.items():
        lines += _section(key, kind)
    return "\n".join(lines)


def _section(key: str, kind: type) -> Iterator[str]:
    """Give the lines of a section, then those of the sections in it."""
    hints = get_type_hints(kind, include_extras=True)
    own = [field for field in _keys(kind) if not _inner(hints[field.name])]
    nested = [field for field in _keys(kind) if _inner(hints[field.name])]
    choices = f", {choice_of(kind)}: {' or '.join(choices_of(kind))}" if choice_of(kind) else ""
    if kind is not DatasetParams:
        yield f"## {key}{choices}\n"
        yield f"{' '.join((inspect.getdoc(kind) or '').split())}\n"
    if own:
        yield "| key | value | default |\n| --- | --- | --- |"
        for field in own:
            yield f"| `{field.name}` | {_described(hints[field.name])} | {_default(field)} |"
        yield ""
    for field in nested:
        for inner in _inner(hints[field.name]):
            yield from _section(f"{key}.{field.name}", inner)


def _keys(kind: type) -> list[Field[Any]]:
    """The fields that stand in the section of params.yaml itself."""
    beside = ("name", "train", "amfi") if kind is DatasetParams else ()
    return [field for field in fields(kind) if field.name not in beside]


def _inner(hint: Any) -> list[type]:
    """The sections that a key may hold, none for a plain value."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [kind for kind in kinds if is_dataclass(kind) and isinstance(kind, type)]


def _described(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_described(arguments[0])}{arguments[1]}"
    if origin in (Union, types.UnionType):
        return " or ".join("null" if one is type(None) else _described(one) for one in arguments)
    if origin is tuple:
        return f"list of {_described(arguments[0])}"
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in arguments)
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}[hint]


def _default(field: Field[Any]) -> str:
    if field.default is MISSING:
        return "none, must be given"
    return f"`{json.dumps(field.default)}`"

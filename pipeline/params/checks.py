"""Plain values checked against the dataclasses that say what is expected: a wrong one is named in full."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from harcache.pipeline.base.errors import HarcacheError, did_you_mean

__all__ = ["choice_of", "choices_of", "field_names", "parse_section"]

_Kind = TypeVar("_Kind")
_CHOICES = ("backend", "layout")  # keys that decide which other keys a section has


def parse_section(kind: type[_Kind], value: Any, key: str, given: Mapping[str, Any] | None = None) -> _Kind:
    """Return the section of ``kind`` that ``value``, read from params.yaml at ``key``, describes.

    ``given``: fields that come from elsewhere. Raises HarcacheError for an unknown, missing or mistyped key,
    which is named in full and with the nearest right name.
    """
    given = given or {}
    if not isinstance(value, dict):
        raise _mistyped(key, value, "a mapping")
    known = {f.name: f for f in fields(kind) if f.name not in given}  # type: ignore[arg-type]
    for name in value:
        if name not in known:
            choice = choice_of(kind)
            of = f" of the {choice} '{value[choice]}'" if choice else ""
            raise HarcacheError(f"{key}.{name} is no parameter{of}. {did_you_mean(str(name), known)}")
    hints = get_type_hints(kind, include_extras=True)
    for name, its_field in known.items():
        if name not in value and its_field.default is MISSING:
            hint = _defaults_of(hints[name], name)
            raise HarcacheError(f"{key}.{name} is missing; add it to params.yaml{hint}")
    return kind(**given, **{name: _parse(hints[name], value[name], f"{key}.{name}") for name in value})


def _defaults_of(kind: Any, name: str) -> str:
    """Return how to ask for a section's defaults, where all its keys have one: DVC wants the key itself."""
    optional = is_dataclass(kind) and all(one.default is not MISSING for one in fields(kind))
    return f"; `{name}: {{}}` takes its defaults" if optional else ""


def _parse(kind: Any, value: Any, key: str) -> Any:
    """Return ``value`` as ``kind``: a plain type, Literal, Annotated range, optional, tuple or dataclass."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        number = _parse(arguments[0], value, key)
        if not arguments[1].low <= number <= arguments[1].high:
            raise HarcacheError(f"{key} is {value}: expected {_describe(arguments[0])}{arguments[1]}")
        return number
    if origin in (Union, types.UnionType):
        if is_dataclass(arguments[0]):
            return parse_section(_chosen(arguments, value, key), value, key)
        return None if value is None else _parse(arguments[0], value, key)
    if origin is tuple:
        if not isinstance(value, list):
            raise _mistyped(key, value, "a list")
        return tuple(_parse(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise HarcacheError(f"{key} is {value!r}. {did_you_mean(str(value), arguments)}")
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return parse_section(kind, value, key)
    return _parse_plain(kind, value, key)


def choice_of(kind: type) -> str | None:
    """Return the key of a section that decides which other keys it has: backend, layout or none."""
    return next((name for name in _CHOICES if name in field_names(kind)), None)


def choices_of(kind: type) -> tuple[str, ...]:
    """Return the backends or layouts that a section is of; none for a section that is always the same."""
    choice = choice_of(kind)
    return get_args(get_type_hints(kind)[choice]) if choice else ()


def _chosen(kinds: tuple[type, ...], value: Any, key: str) -> type:
    """Return which of ``kinds`` has the backend or layout that ``value`` names."""
    choice = choice_of(kinds[0])
    assert choice is not None, f"{kinds} have nothing to choose them by"
    if not isinstance(value, dict):
        raise _mistyped(key, value, "a mapping")
    if choice not in value:
        raise HarcacheError(f"{key}.{choice} is missing; add it to params.yaml")
    known = {name: kind for kind in kinds for name in choices_of(kind)}
    chosen = known[_parse(Literal[*known], value[choice], f"{key}.{choice}")]
    for name in value:
        others = [other for other, kind in known.items() if name in field_names(kind)]
        if others and name not in field_names(chosen):
            raise HarcacheError(
                f"{key}.{name} is no parameter of the {choice} '{value[choice]}', only of "
                f"{', '.join(sorted(others))}: remove it, or choose another {choice}"
            )
    return chosen


def field_names(kind: type) -> list[str]:
    """Return the keys of a section."""
    return [one.name for one in fields(kind)]


def _parse_plain(kind: type, value: Any, key: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    # bool is an int to Python, but never one to the writer of params.yaml.
    if type(value) is not kind:
        raise _mistyped(key, value, _describe(kind))
    return value


def _mistyped(key: str, value: Any, expected: str) -> HarcacheError:
    # YAML 1.1 takes a number without a point, such as 1e-4, for text.
    hint = " (write 1e-4 as 1.0e-4)" if expected == "a number" and isinstance(value, str) else ""
    return HarcacheError(f"{key} is {value!r}: expected {expected}{hint}")


def _describe(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]

"""Parameters as params.yaml and checkpoints hold them, read and written."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from harcache.pipeline.base.errors import HarcacheError, did_you_mean
from harcache.pipeline.params.checks import choices_of, field_names, parse_section
from harcache.pipeline.params.schema import DatasetParams
from harcache.pipeline.params.training import AmfiParams, TrainParams

__all__ = ["dataset_names", "from_mapping", "load_params", "to_mapping"]

# DVC reads YAML 1.2, in which these are numbers too.
_NUMBERS_TO_DVC = r"\d+[eE]\d+|0o[0-7]+"
# Of DatasetParams, the fields that come from mappings of their own.
_NETWORKS: Mapping[str, type[TrainParams | AmfiParams]] = {"train": TrainParams, "amfi": AmfiParams}


def dataset_names(path: Path | str = "params.yaml") -> list[str]:
    """Return the names under ``datasets`` in the order of the file."""
    return list(_read_mapping(Path(path), "datasets"))


def load_params(path: Path | str = "params.yaml", *, dataset: str) -> DatasetParams:
    """Read the parameters of ``dataset``.

    Raises HarcacheError for a file that is missing or not YAML, an unknown dataset, and for an unknown,
    missing or mistyped key, which is named in full and with the nearest right name.
    """
    datasets = _read_mapping(Path(path), "datasets")
    if dataset not in datasets:
        raise HarcacheError(f"{path} has no dataset '{dataset}'. {did_you_mean(dataset, datasets)}".rstrip())
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", dataset):
        raise HarcacheError(f"dataset name {dataset!r}: expected letters, digits, '_' and '-' only")
    networks = {
        field: _read_mapping(Path(path), kind.KEY, needed=False).get(dataset)
        for field, kind in _NETWORKS.items()
    }
    return _parse_dataset(dataset, datasets[dataset], networks)


def to_mapping(params: DatasetParams) -> dict[str, Any]:
    """Return all parameters of a dataset as plain values, which a file that JSON or YAML writes can hold."""
    return json.loads(json.dumps(asdict(params)))


def from_mapping(content: Mapping[str, Any]) -> DatasetParams:
    """Return the parameters that `to_mapping` took apart; checked as `load_params` checks a file's."""
    sections = {key: value for key, value in content.items() if key not in ("name", *_NETWORKS)}
    sections["index"] = _without_other_layouts(sections.get("index"))
    networks = {field: content.get(field) for field in _NETWORKS}
    return _parse_dataset(str(content.get("name")), sections, networks)


def _without_other_layouts(index: Any) -> Any:
    """Leave out what other layouts take: earlier versions kept the options of all of them."""
    if not isinstance(index, Mapping):
        return index
    kinds = get_args(get_type_hints(DatasetParams)["index"])
    own = next((kind for kind in kinds if index.get("layout") in choices_of(kind)), None)
    if own is None:
        return index
    others = {name for kind in kinds for name in field_names(kind)} - {*field_names(own)}
    return {name: value for name, value in index.items() if name not in others}


def _parse_dataset(name: str, sections: Any, networks: Mapping[str, Any]) -> DatasetParams:
    given: dict[str, Any] = {"name": name}
    for field, kind in _NETWORKS.items():
        section = networks[field]
        given[field] = None if section is None else parse_section(kind, section, f"{kind.KEY}.{name}")
    return parse_section(DatasetParams, sections, f"datasets.{name}", given)


def _read_mapping(path: Path, key: str, needed: bool = True) -> dict[str, Any]:
    if not path.is_file():
        raise HarcacheError(
            f"{path} is missing; change to your project's folder, or create one with `harcache init`"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise HarcacheError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    found = content.get(key) if isinstance(content, dict) else None
    if found is None and not needed:
        return {}
    if not isinstance(found, dict):
        raise HarcacheError(f"{path} has no mapping '{key}'; expected one entry a dataset")
    for name in found:
        _check_is_text(name, f"{path}: {key}")
    return found


def _check_is_text(name: Any, where: str) -> None:
    """Raise HarcacheError for a name that YAML does not read as text: DVC then finds no stages at all."""
    if not isinstance(name, str):
        raise HarcacheError(
            f"{where} has a name that YAML reads as {name!r} ({type(name).__name__}), not as text; write it "
            "in quotes, or choose another name"
        )
    if re.fullmatch(_NUMBERS_TO_DVC, name):
        raise HarcacheError(
            f"{where} has the name '{name}', which DVC reads as a number; choose a name that begins with a "
            "letter"
        )

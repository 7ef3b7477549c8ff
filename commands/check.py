"""Check: which parts of harcache are installed, on what devices, and what the datasets of params.yaml lack.

Nothing is fetched and no network is loaded: each dataset is asked what its parameters name.
"""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from harcache.models.pretrained.weight_files import find_config, locate_weights
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.layers import LAYERS, Layer, MissingPartError, is_there, load
from harcache.pipeline.params import (
    DatasetParams,
    DetectParams,
    PoseParams,
    dataset_names,
    load_params,
)
from harcache.pipeline.params.backends import DETECTORS, POSE_ESTIMATORS

__all__ = ["Checked", "Part", "check", "describe", "mmpose_requirements"]

_OPENCV = tuple(
    f"opencv-{kind}" for kind in ("python", "python-headless", "contrib-python", "contrib-python-headless")
)
_BACKEND_LAYERS = DETECTORS | POSE_ESTIMATORS


@dataclass(frozen=True, slots=True)
class Part:
    """A layer: the versions of its packages that are there, those that are not, and what installs them."""

    name: str
    purpose: str
    versions: dict[str, str]
    missing: list[str]
    command: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What `check` found, as JSON can hold it.

    ``problems``: what is wrong with the installation. ``datasets``: what each lacks, empty where nothing;
    ``fetched``: weights of each that are to be fetched when they are first used.
    """

    harcache: str
    python: str
    system: str
    layers: list[Part]
    devices: dict[str, Any]
    problems: list[str]
    project: dict[str, str]
    datasets: dict[str, list[str]]
    fetched: dict[str, list[str]]


def mmpose_requirements() -> Path:
    """Return the file that ``pip install --no-deps -r`` takes to install mmpose."""
    return Path(str(resources.files("harcache.models.pretrained") / "mmpose.txt"))


def check(params: Path, needed: bool, weights_dir: Path | None = None) -> Checked:
    """Look at this installation and at the datasets of the file ``params``.

    A file that is not there is an error where it is ``needed``; it must be YAML with datasets in it.
    """
    names = dataset_names(params) if needed or params.exists() else []
    lacking, fetched = {}, {}
    for name in names:
        lacking[name], fetched[name] = _needs_of(params, name, weights_dir)
    return Checked(
        harcache=metadata.version("harcache"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        layers=[_part(layer) for layer in LAYERS.values()],
        devices=_devices(),
        problems=list(_problems()),
        project=_project(),
        datasets=lacking,
        fetched=fetched,
    )


def describe(found: Checked) -> str:
    """Return what `check` found as lines to read."""
    lines = [f"harcache {found.harcache}, Python {found.python}, {found.system}"]
    for part in found.layers:
        versions = ", ".join(f"{name} {version}" for name, version in part.versions.items())
        lines.append(f"{part.name:<12}{part.purpose}: {versions or 'not installed'}")
        if part.missing:
            lines.append(f"{'':<12}missing: {', '.join(part.missing)}; run: {part.command}")
    lines.append(f"{'devices':<12}{_described_devices(found.devices)}")
    lines += [f"{'project':<12}{name}: {state}" for name, state in found.project.items()]
    lines += [f"{'problem':<12}{problem}" for problem in found.problems]
    for name, lacking in found.datasets.items():
        lines.append(f"{name}: {'lacks what these lines name' if lacking else 'nothing is missing'}")
        lines += [f"  {line}" for line in lacking]
        lines += [f"  to be fetched at first use: {address}" for address in found.fetched[name]]
    return "\n".join(lines)


def _part(layer: Layer) -> Part:
    there = [module for module in layer.modules if is_there(module)]
    versions = dict(_version(module, layer.modules[module]) for module in there)
    missing = [name for module, name in layer.modules.items() if module not in there]
    return Part(layer.name, layer.purpose, versions, missing, layer.command)


def _version(module: str, distribution: str) -> tuple[str, str]:
    """Return the distribution that holds a module, of which there may be several kinds, and its version."""
    for name in _OPENCV if module == "cv2" else (distribution, module):
        if _is_installed(name):
            return name, metadata.version(name)
    return distribution, "of unknown version"


def _devices() -> dict[str, Any]:
    found: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": None,
    }
    if is_there("torch"):
        cuda = load("torch").cuda
        found["gpus"] = [
            {"name": cuda.get_device_name(number), "memory": cuda.get_device_properties(number).total_memory}
            for number in range(cuda.device_count())
        ]
    return found


def _described_devices(devices: dict[str, Any]) -> str:
    if devices["gpus"] is None:
        gpus = "GPUs are found by PyTorch, which is not installed"
    else:
        named = [f"{gpu['name']} of {gpu['memory'] / 2**30:.0f} GiB" for gpu in devices["gpus"]]
        gpus = f"GPUs: {', '.join(named)}" if named else "no GPU"
    return f"{devices['cores']} cores, {devices['memory'] / 2**30:.0f} GiB of memory, {gpus}"


def _project() -> dict[str, str]:
    """Return what DVC would need here; commands can be run one by one without it."""
    git = "there" if shutil.which("git") else "not installed; dvc repro needs it"
    dvc = "there" if is_there("dvc") else f"not installed; run: {LAYERS['pipeline'].command}"
    return {"git": git, "dvc": dvc}


def _problems() -> Iterator[str]:
    installed = [name for name in _OPENCV if _is_installed(name)]
    works = _opencv_problem() if is_there("cv2") else None
    if len(installed) > 1:
        # Without a display, only the headless ones can be loaded.
        kept = next((name for name in installed if "headless" not in name), installed[0])
        if works is not None:
            kept = next((name for name in installed if "headless" in name), kept)
        yield (
            f"{' and '.join(installed)} are both installed and overwrite each other's files: removing either "
            f"breaks the other; run: pip uninstall -y {' '.join(installed)}, then pip install {kept}"
        )
    elif works is not None:
        yield works


def _opencv_problem() -> str | None:
    try:
        opencv = load("cv2")
    except ImportError as error:
        return str(error)
    if hasattr(opencv, "resize"):
        return None
    return (
        "OpenCV is there in parts, as another of its packages was removed; run: "
        "pip install --force-reinstall --no-deps opencv-python"
    )


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _needs_of(path: Path, dataset: str, weights_dir: Path | None) -> tuple[list[str], list[str]]:
    """Return what a dataset lacks, a line each, and the addresses of the weights that are to be fetched."""
    try:
        params = load_params(path, dataset=dataset)
    except HarcacheError as error:
        return [str(error)], []
    lacking = [*_missing_layers(params), *_missing_sources(params)]
    fetched = []
    for name in _weights_of(params):
        try:
            found = locate_weights(name, weights_dir)
        except MissingPartError:
            continue  # its layer is named already
        except HarcacheError as error:
            lacking.append(str(error))
        else:
            fetched += [found] if isinstance(found, str) else []
    return lacking, fetched


def _missing_layers(params: DatasetParams) -> Iterator[str]:
    used = {"extract": "its extraction"}
    for stage, section in (("detect", params.detect), ("pose", params.pose)):
        if section.backend in _BACKEND_LAYERS:
            used.setdefault(_BACKEND_LAYERS[section.backend], f"{stage}.backend '{section.backend}'")
    if params.train is not None or params.amfi is not None:
        used["train"] = "its training"
    for name, what in used.items():
        part = _part(LAYERS[name])
        if part.missing:
            yield f"{what} needs {', '.join(part.missing)}; run: {part.command}"


def _missing_sources(params: DatasetParams) -> Iterator[str]:
    for stage, section in (("detect", params.detect), ("pose", params.pose)):
        source = getattr(section, "source", None)
        if source is not None and not Path(source).exists():
            yield f"{stage}.source '{source}' is not there; put it there, or correct the path"
    if isinstance(params.pose, PoseParams) and params.pose.backend == "mmpose":
        try:
            find_config(params.pose.config)
        except MissingPartError:
            return
        except HarcacheError as error:
            yield str(error)


def _weights_of(params: DatasetParams) -> Iterator[str]:
    if isinstance(params.detect, DetectParams):
        yield params.detect.weights
    if isinstance(params.pose, PoseParams):
        yield params.pose.weights


def as_json(found: Checked) -> dict[str, Any]:
    """Return what `check` found for a program."""
    return asdict(found)

"""Finds the file behind a weights name: shipped, laid in a folder, or fetched once and checked by its hash.

A fetched file is checked against its publisher's SHA-256; what the user laid in a folder is trusted.
"""

import hashlib
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.layers import require

__all__ = [
    "ENVIRONMENT",
    "config_digest",
    "find_config",
    "find_weights",
    "is_looked_up",
    "load_tensors",
    "locate_weights",
    "weights_digest",
]

ENVIRONMENT = "HARCACHE_WEIGHTS_DIR"

_SHIPPED = Path(__file__).parents[1] / "weights"
_SUFFIXES = ("", ".pt", ".pth")

_ULTRALYTICS = "https://github.com/ultralytics/assets/releases/download/v8.3.0"
_ULTRALYTICS_SHA256 = {
    "yolo11n.pt": "0ebbc80d4a7680d14987a577cd21342b65ecfd94632bd9a8da63ae6417644ee1",
    "yolo11s.pt": "85a76fe86dd8afe384648546b56a7a78580c7cb7b404fc595f97969322d502d5",
    "yolo11m.pt": "d5ffc1a674953a08e11a8d21e022781b1b23a19b730afc309290bd9fb5305b95",
    "yolo11l.pt": "9ebd0e09d59811db4b1d61e2bc6730649608b1ac47f8dd01e2da6bca7c20023f",
    "yolo11x.pt": "7bc158aa95c0ebfdd87f70f01653c1131b93e92522dbe15c228bcd742e773a24",
    "yolov8n.pt": "f59b3d833e2ff32e194b5bb8e08d211dc7c5bdf144b90d2c8412c47ccfc83b36",
    "yolov8s.pt": "1f47a78bf100391c2a140b7ac73a1caae18c32779be7d310658112f7ac9aa78a",
    "yolo11n-pose.pt": "869e83fcdffdc7371fa4e34cd8e51c838cc729571d1635e5141e3075e9319dc0",
}
# As torchvision has them, whose import takes seconds.
_TORCHVISION = {
    "fasterrcnn_resnet50_fpn_v2": (
        "https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"
    )
}


@dataclass(frozen=True)
class _Source:
    url: str
    sha256: str  # its first digits suffice

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


def find_weights(name: str, weights_dir: Path | None = None) -> Path:
    """Return the file that ``name`` stands for.

    Looked for in this order: the files shipped here, ``weights_dir``, the folder that the environment
    variable HARCACHE_WEIGHTS_DIR names, earlier fetched files. ``name`` may also be a path. Public weights
    that are nowhere are fetched into the first of those folders that is given. Call this once before many
    processes need the same file.

    Raises:
        HarcacheError: the file is nowhere and can't be fetched; says which file to put where.
    """
    found, folder = _locate(name, weights_dir)
    return _fetch(found, folder) if isinstance(found, _Source) else found


def locate_weights(name: str, weights_dir: Path | None = None) -> Path | str:
    """Return the file that ``name`` stands for, or the address that `find_weights` would fetch it from.

    Raises HarcacheError where it is nowhere and has no address.
    """
    found, _ = _locate(name, weights_dir)
    return found.url if isinstance(found, _Source) else found


def _locate(name: str, weights_dir: Path | None) -> tuple["Path | _Source", Path]:
    """Return the file or where it is published, and the folder to fetch it into."""
    source = _public_source(name)
    given = [Path(folder) for folder in (weights_dir, os.environ.get(ENVIRONMENT)) if folder]
    # The command line hands on the environment's folder as its own.
    folders = list(dict.fromkeys([*given, _fetched_dir()]))
    files = [name + suffix for suffix in _SUFFIXES] + ([source.file] if source else [])
    for folder in (_SHIPPED, *folders):
        for file in files:
            if (folder / file).is_file():
                return folder / file, folder
    if source is None:
        raise HarcacheError(
            f"weights '{name}' are not in {', '.join(map(str, folders))} and have no known source; "
            f"put the file at {folders[0] / name}, or set {ENVIRONMENT} to the folder that holds it"
        )
    return source, folders[0]


def is_looked_up(name: str) -> bool:
    """Tell whether ``name`` can only lead to a file of this package, of mmpose or of the weights folders.

    A name that came with data must be such: a path may lead to a file that came with them too, and a config
    is code.
    """
    return re.fullmatch(r"[\w-]+(\.[\w-]+)*", name) is not None and not name.endswith(".py")


def find_config(name: str) -> Path:
    """Return the mmpose config that ``name`` stands for: shipped here, a path, or a name in mmpose's zoo.

    A config is Python code that runs when it is read.

    Raises:
        HarcacheError: no such config.
    """
    for path in (_SHIPPED / f"{name}.py", Path(name)):
        if path.suffix == ".py" and path.is_file():
            return path
    if path_in_zoo := _zoo_config(name):
        return path_in_zoo
    # It may well be in mmpose's zoo.
    require("mmpose")
    raise HarcacheError(
        f"pose config '{name}' is neither shipped, nor a .py file, nor a config of the installed mmpose; "
        "name one such as 'td-hm_hrnet-w32_8xb64-210e_coco-256x192' or give a path"
    )


def weights_digest(name: str, weights_dir: Path | None = None) -> str | None:
    """Return the SHA-256 of the file that ``name`` stands for, None where it is nowhere.

    Nothing is fetched: public weights have their published digest before and after, if only its first digits.
    """
    try:
        found, _ = _locate(name, weights_dir)
    except HarcacheError:
        return None
    if isinstance(found, _Source):
        return found.sha256
    digest, source = _sha256(found), _public_source(name)
    return source.sha256 if source and digest.startswith(source.sha256) else digest


def config_digest(name: str) -> str | None:
    """Return the SHA-256 of the mmpose config that ``name`` stands for, None where it is nowhere."""
    try:
        return _sha256(find_config(name))
    except HarcacheError:
        return None


def load_tensors(path: Path) -> dict[str, Any]:
    """Load a checkpoint of tensors and plain values, on the CPU; nothing in it can run code.

    Raises:
        HarcacheError: the file is damaged or holds other Python objects.
    """
    from harcache.models.torch_files import read_torch  # seconds that those who look for a file need not pay

    try:
        loaded = read_torch(path, _NUMPY_GLOBALS)
    except (OSError, ValueError) as error:
        raise HarcacheError(
            f"{path}: not a checkpoint of plain tensors ({error}); "
            "fetch it again, or save its state_dict alone with torch.save"
        ) from error
    if not isinstance(loaded, dict):
        raise HarcacheError(
            f"{path}: holds a {type(loaded).__name__}, not a dict of tensors; save a state_dict"
        )
    return loaded


# mmpose's published checkpoints keep the data set's colours and sigmas as NumPy arrays beside the weights.
_reconstruct = np.zeros(1).__reduce__()[0]
_scalar = np.float64(0).__reduce__()[0]
_NUMPY_GLOBALS: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("u1", "i4", "i8", "f4", "f8")),
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for function, name in ((_reconstruct, "_reconstruct"), (_scalar, "scalar"))
    ),
]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetched_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harcache" / "weights"


def _public_source(name: str) -> _Source | None:
    """Return where public weights are published: by Ultralytics, torchvision or mmpose."""
    if name in _ULTRALYTICS_SHA256:
        return _Source(f"{_ULTRALYTICS}/{name}", _ULTRALYTICS_SHA256[name])
    if name in _TORCHVISION:
        return _hash_in_name(_TORCHVISION[name])
    if config := _zoo_config(name):
        indexes = "\n".join(index.read_text() for index in sorted(config.parent.glob("*.yml")))
        url = re.search(rf"Weights: (https://\S+/{re.escape(name)}-[0-9a-f]{{8}}_\d+\.pth)", indexes)
        return _hash_in_name(url[1]) if url else None
    return None


def _hash_in_name(url: str) -> _Source:
    """OpenMMLab and torchvision write the first 8 digits of a file's SHA-256 into its name."""
    digits = re.search(r"-([0-9a-f]{8})(?:_\d+)?\.pth$", url)
    assert digits, f"no hash in {url}"
    return _Source(url, digits[1])


def _zoo_config(name: str) -> Path | None:
    """Find a config by its file's stem in the folder that mmpose ships, without importing mmpose."""
    spec = importlib.util.find_spec("mmpose")
    if spec is None or spec.origin is None or not re.fullmatch(r"[\w.-]+", name):
        return None
    return next((Path(spec.origin).parent / ".mim" / "configs").rglob(f"{name}.py"), None)


def _fetch(source: _Source, folder: Path) -> Path:
    """Download beside the place, check the hash, then rename; shows progress on stderr."""
    import torch

    path = folder / source.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(source.url, str(path), hash_prefix=source.sha256)
    except RuntimeError as error:  # torch's word for a wrong hash
        raise HarcacheError(
            f"{source.url} was fetched with {error}; try again, or put a good copy at {path}"
        ) from error
    except OSError as error:
        raise HarcacheError(
            f"weights {source.file} could not be fetched from {source.url} ({error}); "
            f"put the file at {path}, or set {ENVIRONMENT} to the folder that holds it"
        ) from error
    return path

"""Ultralytics' checkpoints, loaded without running code that is in them; and the package, without its extras.

The checkpoints are pickles of whole modules; they are loaded by an allow-list of network classes. Settings,
telemetry, installs and downloads of the library are switched off.
"""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harcache.models.pretrained.weight_files import load_tensors
from harcache.pipeline.base.errors import HarcacheError, refuse_newer
from harcache.pipeline.base.layers import load

__all__ = ["load_yolo", "person_class", "prepare_ultralytics", "save_yolo"]

_FORMAT = "harcache-yolo-1"
# The library calls whatever function a model's description names, so a file may name only these.
_LAYERS = {"Conv", "C2f", "SPPF", "Concat", "Detect", "Pose", "nn.Upsample"}


def prepare_ultralytics() -> None:
    """Import Ultralytics without its telemetry, installs, downloads and settings in the home folder."""
    if "ultralytics" in sys.modules:
        return
    # A folder a process: workers that start together would otherwise write one settings file at once.
    settings = tempfile.mkdtemp(prefix="harcache-ultralytics-")
    atexit.register(shutil.rmtree, settings, ignore_errors=True)
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false")
    users = os.environ.get("YOLO_CONFIG_DIR")
    os.environ["YOLO_CONFIG_DIR"] = users or settings
    try:
        load("ultralytics")
    finally:
        if users is None:  # the folder is this process's alone, so its children must not inherit it
            del os.environ["YOLO_CONFIG_DIR"]


def save_yolo(model: Any, names: Mapping[int, str], path: Path) -> None:
    """Save an Ultralytics ``DetectionModel`` as float16 tensors and plain values, without pickled code."""
    state = model.state_dict()
    state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"format": _FORMAT, "yaml": model.yaml, "names": dict(names), "state_dict": state}, path)


def load_yolo(path: Path) -> tuple[Any, dict[int, str], int]:
    """Return the network, its class names and the image size it was trained with."""
    try:
        saved = load_tensors(path)
    except HarcacheError:
        saved = {}
    refuse_newer(saved.get("format"), _FORMAT, path)
    return _load_saved(saved, path) if saved.get("format") == _FORMAT else _load_ultralytics(path)


def _load_saved(saved: Mapping[str, Any], path: Path) -> tuple[Any, dict[int, str], int]:
    from ultralytics.nn.tasks import DetectionModel

    description = dict(saved["yaml"])
    unknown = {layer[2] for part in ("backbone", "head") for layer in description[part]} - _LAYERS
    if unknown or "activation" in description:
        what = ", ".join(sorted(unknown)) or "an activation"
        raise HarcacheError(
            f"{path}: its description names {what}, expected only {', '.join(sorted(_LAYERS))}"
        )
    model = DetectionModel(description, verbose=False)
    try:
        model.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        raise HarcacheError(
            f"{path}: its tensors don't fit its description; save it again by save_yolo"
        ) from error
    return model.float(), dict(saved["names"]), 640


def _load_ultralytics(path: Path) -> tuple[Any, dict[int, str], int]:
    from ultralytics.nn.tasks import torch_safe_load

    try:
        checkpoint, _ = torch_safe_load(str(path), safe_only=True)
        model = (checkpoint.get("ema") or checkpoint["model"]).float()
    except Exception as error:  # a damaged or foreign file shows itself in many ways
        raise HarcacheError(
            f"{path}: not a checkpoint that Ultralytics can load safely "
            f"({type(error).__name__}: {' '.join(str(error).split())}); fetch it again, or update ultralytics"
        ) from error
    return model, dict(model.names), int(checkpoint.get("train_args", {}).get("imgsz", 640))


def person_class(names: Mapping[int, str], path: Path) -> int:
    """Return the number of the class "person", or of the only class; HarcacheError where neither is."""
    if len(names) == 1:
        return next(iter(names))
    for number, name in names.items():
        if name == "person":
            return number
    known = ", ".join(names.values())
    raise HarcacheError(f"{path}: knows no class 'person', only {known}; use weights that find persons")

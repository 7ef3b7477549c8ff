"""Networks to files and back, and the way in for weights that others trained and published.

A checkpoint names its network and the arguments that build it, so that a file is enough to go on from. Files
are read without running any code in them, and a checksum finds damage that PyTorch's own format lets pass.
"""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harcache.models.networks.agcn import AGCN
from harcache.models.networks.amfi_net import AMFINet, ResNet3D18
from harcache.models.networks.epam_net import EPAMNet
from harcache.models.networks.xshiftnet import PoseXShiftNet, RGBXShiftNet
from harcache.models.torch_files import read_torch
from harcache.pipeline.base.errors import HarcacheError, did_you_mean, refuse_newer
from harcache.pipeline.base.files import refuse_to_replace_source, write_atomically
from harcache.pipeline.base.text import shown

__all__ = [
    "NETWORKS",
    "Checkpoint",
    "build_network",
    "import_released_checkpoint",
    "load_any_network",
    "load_checkpoint",
    "load_network",
    "load_released_checkpoint",
    "save_checkpoint",
]

NETWORKS: Mapping[str, type[nn.Module]] = {
    "agcn": AGCN,
    "amfi_net": AMFINet,
    "epam_net": EPAMNet,
    "pose_xshiftnet": PoseXShiftNet,
    "resnet3d_18": ResNet3D18,
    "rgb_xshiftnet": RGBXShiftNet,
}
"""Every network that can be built by name."""

_FORMAT = "harcache-checkpoint-1"
_LISTED = 5
_LARGEST_NUMBER = 1_000_000  # of classes, channels or frames in a description


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint file holds; ``extra`` is whatever its writer added, such as the epoch."""

    network: str
    config: dict[str, Any]
    classes: tuple[str, ...]
    state_dict: dict[str, Tensor]
    extra: dict[str, Any]


def build_network(name: str, config: Mapping[str, Any]) -> nn.Module:
    """Return a fresh network by its name in ``NETWORKS`` and the arguments of its constructor.

    Raises:
        HarcacheError: there is no such network, or it does not take these arguments.
    """
    if name not in NETWORKS:
        raise HarcacheError(f"there is no network '{name}'. {did_you_mean(name, NETWORKS)}")
    try:
        return NETWORKS[name](**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise HarcacheError(f"the network '{name}' cannot be built from {dict(config)}: {error}") from error


def save_checkpoint(
    path: Path, network: nn.Module, classes: Sequence[str] = (), extra: Mapping[str, Any] | None = None
) -> None:
    """Write a network of this package to ``path``, whole or not at all.

    ``classes`` are the names of its outputs in order; ``extra`` holds plain values: numbers, text, lists,
    dicts. Raises StandstillError where the disk is full.
    """
    names = {kind: name for name, kind in NETWORKS.items()}
    content = {
        "format": _FORMAT,
        "network": names[type(network)],
        "config": network.config,
        "classes": list(classes),
        "state_dict": {name: value.detach().cpu().clone() for name, value in network.state_dict().items()},
        "extra": dict(extra or {}),
    }
    # Of a file on a full disk PyTorch would raise an error of its own, and write the file's name into it.
    buffer = io.BytesIO()
    torch.save(content | {"digest": _digest(content)}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that ``save_checkpoint`` wrote; its tensors are on the CPU.

    Raises:
        HarcacheError: the file is missing, damaged, or no checkpoint of this format.
    """
    return _checkpoint_of(_read(path), path)


def _checkpoint_of(content: Any, path: Path) -> Checkpoint:
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        refuse_newer(found, _FORMAT, path)
        raise HarcacheError(
            f"{path} is no harcache checkpoint (its format is {shown(found)}, expected '{_FORMAT}'); "
            f"load released EPAM-Net weights with load_released_checkpoint, or train again"
        )
    digest = content.pop("digest", None)
    try:
        _check_plain(content["state_dict"], path)
        if digest != _digest(content):
            raise HarcacheError(f"{path} is damaged: its weights do not match their checksum; copy it again")
        said = content["network"], *content["classes"]
        if not isinstance(content["config"], dict) or not all(isinstance(name, str) for name in said):
            raise HarcacheError(f"{path} is damaged: it does not say which network it holds; copy it again")
        return Checkpoint(
            content["network"],
            content["config"],
            tuple(content["classes"]),
            content["state_dict"],
            content["extra"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise HarcacheError(f"{path} is damaged: {error!r} in its content; copy it again") from error


def load_network(path: Path) -> tuple[nn.Module, Checkpoint]:
    """Build the network of a checkpoint with its weights, on the CPU and in training mode.

    Raises:
        HarcacheError: as ``load_checkpoint``, or the weights do not fit the network.
    """
    return _network_of(load_checkpoint(path), path)


def _network_of(checkpoint: Checkpoint, path: Path) -> tuple[nn.Module, Checkpoint]:
    _check_numbers(checkpoint, path)
    # First without memory, of which a file may ask for any amount.
    with torch.device("meta"):
        _check_fits(build_network(checkpoint.network, checkpoint.config), checkpoint.state_dict, path)
    network = build_network(checkpoint.network, checkpoint.config)
    _load_strictly(network, checkpoint.state_dict, path)
    return network, checkpoint


def _check_numbers(checkpoint: Checkpoint, path: Path) -> None:
    """Raise HarcacheError where a checkpoint describes a network of more parts than it has weights."""
    lists = [value for value in checkpoint.config.values() if isinstance(value, list | tuple)]
    parts = sum(number for values in lists for number in values if isinstance(number, int))
    numbers = [value for value in checkpoint.config.values() if isinstance(value, int)]
    if parts > len(checkpoint.state_dict) or max(numbers, default=0) > _LARGEST_NUMBER:
        raise HarcacheError(
            f"{path} is damaged: it describes a larger network than it has weights of; copy it again"
        )


def load_released_checkpoint(network: nn.Module, path: Path) -> None:
    """Load weights in the format of the released EPAM-Net implementation into a network of the same kind.

    The file holds a state dict, bare or under ``model_state_dict`` or ``state_dict``, whose names may start
    with ``module.``; weights of 3-D convolutions over one frame become 2-D.

    Raises:
        HarcacheError: the file is missing or damaged, or names or shapes differ; the message lists them.
    """
    _load_released(network, _read_released(path), path)


def import_released_checkpoint(path: Path, out: Path) -> nn.Module:
    """Write a released file as a checkpoint of this package to ``out`` and return its network.

    Which X-ShiftNet or EPAM-Net it is, its width, blocks and number of classes are read off the weights.

    Raises:
        HarcacheError: as ``load_released_checkpoint``, or the weights are of no network of that kind.
    """
    refuse_to_replace_source(path, out)
    state = _read_released(path)
    network = _released_with_weights(state, path)
    save_checkpoint(out, network, extra={"imported_from": path.name})
    return network


def load_any_network(path: Path) -> tuple[nn.Module, Checkpoint]:
    """Build the network of a file that `save_checkpoint` or the released implementation wrote.

    A released file names no classes, and its ``extra`` is empty.

    Raises:
        HarcacheError: as `load_network` for a file of this format, else as `import_released_checkpoint`.
    """
    content = _read(path)
    if isinstance(content, dict) and "format" in content:
        return _network_of(_checkpoint_of(content, path), path)
    state = _state_of(content, path)
    network = _released_with_weights(state, path)
    name, config = _released_network(state, path)
    return network, Checkpoint(name, config, (), network.state_dict(), {})


def _released_with_weights(state: dict[str, Tensor], path: Path) -> nn.Module:
    network = build_network(*_released_network(state, path))
    _load_released(network, state, path)
    return network


def _read_released(path: Path) -> dict[str, Tensor]:
    return _state_of(_read(path), path)


def _state_of(content: Any, path: Path) -> dict[str, Tensor]:
    for key in ("model_state_dict", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise HarcacheError(f"{path} holds no state dict; give the file that the released training wrote")
    _check_plain(content, path)
    return {name.removeprefix("module."): value for name, value in content.items()}


def _check_plain(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise HarcacheError for tensors that are sparse, quantised, without memory or larger than theirs."""
    for name, value in state.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.untyped_storage().nbytes() < value.nbytes:
            raise HarcacheError(
                f"{path} holds weights that are no plain numbers, first '{name}'; copy it again"
            )


def _load_released(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = network.state_dict()
    _load_strictly(network, {name: _flat(value, own.get(name)) for name, value in state.items()}, path)


def _released_network(state: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, Any]]:
    """Return the name and the configuration of the network whose weights these are."""
    both = "pose_cls_head.fc_cls.weight" in state
    stem, head = ("pose_backbone", "pose_cls_head") if both else ("backbone", "cls_head")
    try:
        width, channels = state[f"{stem}.conv1_s.conv.weight"].shape[:2]
        config: dict[str, Any] = {"num_classes": len(state[f"{head}.fc_cls.weight"]), "width": width}
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise HarcacheError(
            f"{path} holds no X-ShiftNet or EPAM-Net ({what}); give the file that the released training wrote"
        ) from error
    if both:
        attention = any(name.startswith("attention_module.") for name in state)
        return "epam_net", config | {
            "attention": "nested" if attention else "none",
            "rgb_blocks": _blocks(state, "rgb_backbone"),
            "pose_blocks": _blocks(state, stem),
            "in_channels": channels,
        }
    config["blocks"] = _blocks(state, stem)
    return (
        ("rgb_xshiftnet", config) if channels == 3 else ("pose_xshiftnet", config | {"in_channels": channels})
    )


def _blocks(state: Mapping[str, Tensor], backbone: str) -> list[int]:
    """Count the blocks of each stage, which are named ``layer1.0`` and so on."""
    pattern = re.compile(rf"{backbone}\.layer(\d+)\.(\d+)\.")
    blocks = {match.groups() for match in map(pattern.match, state) if match}
    depths = Counter(int(stage) for stage, _ in blocks)
    return [depths[stage] for stage in sorted(depths)]


def _flat(value: Tensor, own: Tensor | None) -> Tensor:
    """Drop the time axis of a convolution over one frame, where the network's own weight has none."""
    flat = own is not None and own.ndim == 4 and value.ndim == 5 and value.shape[2] == 1
    return value.squeeze(2) if flat else value


def _load_strictly(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    _check_fits(network, state, path)
    network.load_state_dict(state)


def _check_fits(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = network.state_dict()
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in own.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{len(names)} {what}: {_first(names)}" for what, names in problems.items() if names
        )
        raise HarcacheError(
            f"{path} does not fit this {type(network).__name__}: {listed}; "
            f"build the network with the checkpoint's kind, number of classes, width and blocks"
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _read(path: Path) -> Any:
    try:
        return read_torch(path)
    except FileNotFoundError as error:
        raise HarcacheError(f"there is no checkpoint {path}; train it first or give another path") from error
    except ValueError as error:
        raise HarcacheError(
            f"{path} cannot be read as a checkpoint of plain weights ({error}); copy it again, or give the "
            "network.pt of a training"
        ) from error


def _digest(content: Mapping[str, Any]) -> str:
    """Hash everything that a checkpoint says, by name, shape and value, not by how the file lays it out."""
    digest = hashlib.blake2b(digest_size=16)
    described = {key: value for key, value in content.items() if key != "state_dict"}
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    for name, value in sorted(content["state_dict"].items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

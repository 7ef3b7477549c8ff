"""Trained networks for other programs: torch.export (.pt2) or ONNX (.onnx), for any number of clips at once.

Frames, heights and widths are fixed when a network is exported, as both formats' optimisers want it.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from harcache.models.checkpoints import Checkpoint, load_network
from harcache.models.networks.amfi_net import AMFINet
from harcache.models.networks.epam_net import EPAMNet
from harcache.models.networks.xshiftnet import Backbone
from harcache.models.summary import input_shapes
from harcache.pipeline.base.errors import HarcacheError, did_you_mean
from harcache.pipeline.base.files import commit_file, flush, partial_path, refuse_to_replace_source
from harcache.pipeline.base.layers import load
from harcache.pipeline.params import AmfiParams, from_mapping

__all__ = ["export_checkpoint"]

_SUFFIXES = (".pt2", ".onnx")
_OF_AMFI = ("agcn", "resnet3d_18", "amfi_net")
_OUTPUTS: dict[type, list[str]] = {EPAMNet: ["rgb_logits", "pose_logits"], AMFINet: ["logits", "gate"]}


def export_checkpoint(
    checkpoint: Path, out: Path, sizes: Mapping[str, tuple[int, int, int]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Write the network of ``checkpoint`` in evaluation mode to ``out``, whose suffix names the format.

    Inputs and outputs keep the order and meaning of the network's ``forward``. ``sizes`` gives what follows
    an input's channels, (frames, height, width) or (frames, joints, persons), where it is not as in training
    or, of a file that does not tell that, in the paper. Returns the shape of one clip of each input.

    Raises:
        HarcacheError: the suffix or an input's name is unknown, the checkpoint cannot be read, the network
            does not take these sizes, or ONNX's packages are missing.
    """
    if out.suffix not in _SUFFIXES:
        raise HarcacheError(f"{out} ends with '{out.suffix}'; expected one of {', '.join(_SUFFIXES)}")
    refuse_to_replace_source(checkpoint, out)
    network, found = load_network(checkpoint)
    shapes = input_shapes(network)
    shapes = _resized(shapes, _trained_sizes(shapes, found) | dict(sizes or {}))
    if out.suffix == ".onnx":
        _check_onnx()
    program = _traced(network.eval(), shapes)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(out)
    if out.suffix == ".onnx":
        _save_onnx(
            program, partial, list(shapes), _OUTPUTS.get(type(network), ["logits"]), _optimised(network)
        )
    else:
        with partial.open("wb") as file:
            torch.export.save(program, file)
    commit_file(partial, out)
    flush(out.parent)
    return shapes


def _trained_sizes(
    shapes: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint
) -> dict[str, tuple[int, int, int]]:
    """Return the sizes of the samples that a network was trained on, by input; {} where its file has none."""
    content = checkpoint.extra.get("dataset")
    if not isinstance(content, Mapping):
        return {}
    params = from_mapping(content)
    section = params.amfi if checkpoint.network in _OF_AMFI else params.train
    if section is None:
        return {}
    size = params.rgb.size
    if isinstance(section, AmfiParams):
        size = min(size, section.sample.rgb_size)
    frames, poses = section.sample.rgb_frames, section.sample.clip_len
    sizes = {"rgb": (frames, size, size), "heatmaps": (poses, params.heatmap.size, params.heatmap.size)}
    if "skeletons" in shapes:
        _, _, joints, persons = shapes["skeletons"]
        sizes["skeletons"] = (poses, joints, persons)
    return {name: sizes[name] for name in shapes}


def _resized(
    shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, tuple[int, int, int]]
) -> dict[str, tuple[int, ...]]:
    for name in sizes:
        if name not in shapes:
            raise HarcacheError(f"the network has no input '{name}'. {did_you_mean(name, shapes)}")
    return {name: (shape[0], *sizes.get(name, shape[1:])) for name, shape in shapes.items()}


def _traced(network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> torch.export.ExportedProgram:
    """Trace the network for any number of clips; two are shown, since one would be taken for a constant."""
    inputs = tuple(torch.rand(2, *shape) for shape in shapes.values())
    clips = torch.export.Dim("clips")
    with torch.no_grad():
        return torch.export.export(network, inputs, dynamic_shapes=tuple({0: clips} for _ in inputs))


def _optimised(network: nn.Module) -> bool:
    """Whether the exporter shall optimise: minutes for an X-ShiftNet, which ONNX Runtime optimises itself.

    It refuses the 3-D convolutions of ResNet3D-18 as they are written without it.
    """
    return not any(isinstance(module, Backbone) for module in network.modules())


def _check_onnx() -> None:
    """Find a missing package before the long work of tracing."""
    load("onnxscript")


def _save_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    optimise: bool,
) -> None:
    axes = tuple({0: "clips"} for _ in inputs)
    with warnings.catch_warnings():
        # The axis is one and the same in all inputs, and is named once.
        warnings.filterwarnings("ignore", message=".*clips will not be used")
        converted = torch.onnx.export(
            program,
            (),
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=axes,
            optimize=optimise,
            verbose=False,
        )
    assert converted is not None
    converted.save(path)

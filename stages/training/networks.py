"""The network that a run trains: made from parameters, from its trained streams, or from a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from harcache.models.networks.agcn import AGCN
from harcache.models.networks.amfi_net import AMFINet, ResNet3D18
from harcache.models.networks.epam_net import EPAMNet
from harcache.models.networks.xshiftnet import PoseXShiftNet, RGBXShiftNet
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import AmfiModelParams, AmfiParams, DatasetParams, TrainParams
from harcache.pipeline.params.networks import AMFI_NETWORKS, EPAM_NETWORKS, Network
from harcache.stages.shared.workspace import Workspace
from harcache.stages.training.inputs import Section
from harcache.stages.training.samples import CHECKPOINT
from harcache.stages.training.trained import Trained, check_classes, load_trained

__all__ = ["check_joined", "make_network"]

_FREE = ("num_classes", "dropout")  # arguments in which a checkpoint to start from may differ
_Network = TypeVar("_Network", bound=nn.Module)


def make_network(
    network: Network, train: Section, classes: Sequence[str], workspace: Workspace
) -> tuple[nn.Module, list[Path]]:
    """Return the network to train, and the checkpoints that its first weights are from."""
    if network == "epam" or network == "amfi":
        poses, frames, _ = EPAM_NETWORKS if network == "epam" else AMFI_NETWORKS
        paths = [workspace.training(stream) / CHECKPOINT for stream in (frames, poses)]
        streams = [load_trained(path, "cpu") for path in paths]
        for stream in streams:
            check_classes(stream, classes, f"the dataset '{workspace.dataset}'")
        return _join_streams(streams, train), paths
    made = _make_stream(network, train, len(classes))
    init = getattr(train, network).init
    if init is None:
        return made, []
    _load_initial_weights(made, Path(init), classes, train.KEY)
    return made, [Path(init)]


def check_joined(params: DatasetParams, train: TrainParams) -> None:
    """Raise HarcacheError where EPAM-Net can't join the streams: after both are trained it is too late."""
    model, frames, poses = train.model, train.sample.rgb_frames, train.sample.clip_len
    blocks = model.rgb_blocks, model.pose_blocks
    try:
        # Without values: shapes alone are passed on.
        with torch.device("meta"):
            joined = EPAMNet(1, model.attention, model.width, *blocks, rgb_frames=frames)  # type: ignore[arg-type]
            rgb = torch.empty(1, 3, frames, params.rgb.size, params.rgb.size)
            heatmaps = torch.empty(1, 17, poses, params.heatmap.size, params.heatmap.size)
            joined.eval()(rgb, heatmaps)
    except HarcacheError as error:
        name = params.name
        raise HarcacheError(
            f"EPAM-Net could not join its streams: {error} (training.{name}: model.rgb_blocks, "
            f"model.pose_blocks, sample; datasets.{name}: rgb.size, heatmap.size)"
        ) from error


def _join_streams(streams: Sequence[Trained], train: Section) -> nn.Module:
    """Return EPAM-Net, or AMFI-Net with frozen streams, from both of its trained streams."""
    rgb, poses = streams
    if isinstance(train, AmfiParams):
        resnet, skeleton = _require_type(ResNet3D18, rgb), _require_type(AGCN, poses)
        if poses.graph != train.model.graph:
            raise HarcacheError(
                f"{poses.path} has the graph {poses.graph}, but amfi's model.graph is {train.model.graph}; "
                "train the skeleton stream again"
            )
        made = AMFINet.from_streams(resnet, skeleton, train.model.reduction)
        made.freeze_streams()
        return made
    return EPAMNet.from_streams(
        _require_type(RGBXShiftNet, rgb),
        _require_type(PoseXShiftNet, poses),
        train.model.attention,  # type: ignore[arg-type]
        train.model.dropout,
        train.sample.rgb_frames,
    )


def _make_stream(network: Network, train: Section, classes: int) -> nn.Module:
    model = train.model
    if isinstance(model, AmfiModelParams):
        return ResNet3D18(classes) if network == "resnet" else AGCN(classes, model.graph, model.dropout)
    if network == "pose":
        return PoseXShiftNet(classes, width=model.width, blocks=model.pose_blocks, dropout=model.dropout)
    return RGBXShiftNet(classes, width=model.width, blocks=model.rgb_blocks, dropout=model.dropout)


def _load_initial_weights(made: Any, path: Path, classes: Sequence[str], key: str) -> None:
    """Take over a checkpoint's backbone, and its head too where it tells the same classes apart."""
    given = load_trained(path, "cpu")
    other: Any = _require_type(type(made), given)
    kept = [key for key in made.config if key not in _FREE]
    found, asked = ({key: net.config[key] for key in kept} for net in (other, made))
    if found != asked:
        raise HarcacheError(f"{path} holds a network of {found}, but {key}.model asks for {asked}")
    if given.checkpoint.classes == tuple(classes):
        made.load_state_dict(other.state_dict())
    else:
        made.backbone.load_state_dict(other.backbone.state_dict())


def _require_type(kind: type[_Network], trained: Trained) -> _Network:
    if not isinstance(trained.network, kind):
        raise HarcacheError(
            f"{trained.path} holds a {type(trained.network).__name__}; expected a {kind.__name__}"
        )
    return trained.network

"""Trained networks as evaluation and prediction use them: loaded, checked, and asked in one way.

Apart from training, so that who only asks a network does not wait for the trainer to be imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.checkpoints import Checkpoint, load_any_network
from models.epam_net import EPAMNet
from models.xshiftnet import PoseXShiftNet
from pipeline.errors import HarcacheError

__all__ = ["Network", "Trained", "attention_of", "check_classes", "load_trained", "logits_of", "scores_of"]

Network = Literal["pose", "rgb", "epam"]

_KINDS: Mapping[str, Network] = {"pose_xshiftnet": "pose", "rgb_xshiftnet": "rgb", "epam_net": "epam"}


@dataclass(frozen=True)
class Trained:
    """A network in eval mode on its device, what it reads, and what its file says beside the weights."""

    path: Path
    kind: Network
    network: nn.Module
    checkpoint: Checkpoint


def load_trained(path: Path, device: str) -> Trained:
    """Load a checkpoint, native or released; HarcacheError where the caches can't feed its network."""
    network, checkpoint = load_any_network(path)
    kind = _KINDS.get(checkpoint.network)
    if kind is None:
        raise HarcacheError(
            f"{path} holds the network '{checkpoint.network}', which the caches can't feed; "
            f"expected one of {', '.join(_KINDS)}"
        )
    return Trained(path, kind, network.to(device).eval(), checkpoint)


def check_classes(trained: Trained, classes: Sequence[str], whose: str) -> None:
    """Raise HarcacheError where a network tells other ``classes`` apart; ``whose`` names those.

    A released checkpoint names none; then their number must agree.
    """
    count = trained.checkpoint.config["num_classes"]
    if count != len(classes):
        raise HarcacheError(
            f"{trained.path} tells {count} classes apart, but {whose} has {len(classes)}; "
            "give the dataset and protocol that it was trained on"
        )
    for number, (own, other) in enumerate(zip(trained.checkpoint.classes, classes, strict=False)):
        if own != other:
            raise HarcacheError(
                f"{trained.path} has '{own}' as class {number}, but {whose} has '{other}'; "
                "give the dataset and protocol that it was trained on"
            )


def logits_of(network: nn.Module, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the logits of each head of the network, (B, classes): two of EPAM-Net, RGB first, else one."""
    if isinstance(network, EPAMNet):
        return list(network(batch["rgb"], batch["heatmaps"]))
    return [network(batch["heatmaps" if isinstance(network, PoseXShiftNet) else "rgb"])]


@torch.inference_mode()
def scores_of(network: nn.Module, batch: Mapping[str, Tensor]) -> np.ndarray:
    """Return the sum of the heads' logits for a batch that is ready: (B, classes) float64.

    Raises HarcacheError for a network whose answers are no finite numbers: diverged, or damaged.
    """
    scores = torch.stack(logits_of(network, batch)).sum(0).double().cpu().numpy()
    if not np.isfinite(scores).all():
        raise HarcacheError(
            "the network scores a clip with values that are no finite numbers; copy its file again, or train "
            "it again with a smaller learning rate"
        )
    return scores


@torch.inference_mode()
def attention_of(network: nn.Module, batch: Mapping[str, Tensor]) -> np.ndarray | None:
    """Return where the first sample's RGB frames are looked at, (T, h, w) float32 0..1.

    ``batch`` is ready for the network; None of one without attention.
    """
    if not isinstance(network, EPAMNet) or network.attention_module is None:
        return None
    maps = network.attention_map(batch["heatmaps"][:1], batch["rgb"].shape[2])
    return maps[0].float().cpu().numpy()

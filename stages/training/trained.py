"""Trained networks as evaluation and prediction use them: loaded, checked, and asked in one way.

Apart from training, so that who only asks a network does not wait for the trainer to be imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harcache.models.checkpoints import Checkpoint, load_any_network
from harcache.models.networks.amfi_net import AMFINet
from harcache.models.networks.epam_net import EPAMNet
from harcache.models.summary import input_shapes
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params.networks import Network

__all__ = [
    "Trained",
    "attention_of",
    "check_classes",
    "load_trained",
    "outputs_of",
    "scores_of",
]

_KINDS: Mapping[str, Network] = {
    "pose_xshiftnet": "pose",
    "rgb_xshiftnet": "rgb",
    "epam_net": "epam",
    "agcn": "skeleton",
    "resnet3d_18": "resnet",
    "amfi_net": "amfi",
}


@dataclass(frozen=True)
class Trained:
    """A network in eval mode on its device, what it reads, and what its file says beside the weights."""

    path: Path
    kind: Network
    network: nn.Module
    checkpoint: Checkpoint

    @property
    def graph(self) -> str | None:
        """The name of its skeletons' joints, None where it sees none."""
        return self.checkpoint.config.get("graph")


def load_trained(path: Path, device: str) -> Trained:
    """Load a checkpoint, native or released; HarcacheError where it is damaged or something else."""
    network, checkpoint = load_any_network(path)
    return Trained(path, _KINDS[checkpoint.network], network.to(device).eval(), checkpoint)


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


def outputs_of(network: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return what the network gives for a batch that is ready: two logits of EPAM-Net, RGB first, else one.

    Of AMFI-Net the gate follows the logits.
    """
    outputs = network(*(batch[name] for name in input_shapes(network)))
    return outputs if isinstance(outputs, tuple) else (outputs,)


@torch.inference_mode()
def scores_of(network: nn.Module, batch: Mapping[str, Tensor]) -> np.ndarray:
    """Return the sum of the heads' logits for a batch that is ready: (B, classes) float64.

    Raises HarcacheError for a network whose answers are no finite numbers: diverged, or damaged.
    """
    outputs = outputs_of(network, batch)
    heads = outputs[:1] if isinstance(network, AMFINet) else outputs
    scores = torch.stack(heads).sum(0).double().cpu().numpy()
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

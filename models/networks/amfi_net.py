"""AMFI-Net (paper, sections 3.2 to 3.3.4): RGB and skeleton vectors, fused by attention and a gate.

Each stream is trained alone, then both are frozen and the fusion learns. Where the paper leaves a choice
open, the docstrings name the one taken here.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from harcache.models.networks.agcn import AGCN, AGCNBackbone
from harcache.models.networks.xshiftnet import initialise
from harcache.pipeline.base.errors import HarcacheError

__all__ = ["AMFINet", "FusionHead", "ResNet3D18", "amfi_loss"]

_FEATURES = 512


class _RGBBackbone(nn.Module):
    """torchvision's ResNet3D-18 up to its vector: (B, 3, T, H, W) float 0..1 to (B, 512)."""

    def __init__(self) -> None:
        # Takes as long to import as PyTorch, and the other networks are built without it.
        from torchvision.models.video import r3d_18

        super().__init__()
        self.net = r3d_18(weights=None)
        self.net.fc = nn.Identity()

    def forward(self, rgb: Tensor) -> Tensor:
        if rgb.ndim != 5 or rgb.shape[1] != 3 or 0 in rgb.shape[2:]:
            raise HarcacheError(
                f"the frames are {tuple(rgb.shape)}; expected (clips, 3, frames, height, width), "
                f"at least one frame, such as (8, 3, 16, 112, 112)"
            )
        return self.net(rgb)


class ResNet3D18(nn.Module):
    """The RGB stream by itself: (B, 3, T, H, W) float 0..1 to logits (B, num_classes).

    The paper gives it 16 frames of 112 x 112 pixels and trains by SGD, learning rate 0.1, weight decay 5e-4.
    Other sizes work too; another shape raises HarcacheError.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"num_classes": num_classes}
        self.backbone = _RGBBackbone()
        self.fc_cls = nn.Linear(_FEATURES, num_classes)

    def forward(self, rgb: Tensor) -> Tensor:
        """Return the logits of a batch of clips."""
        return self.fc_cls(self.backbone(rgb))


class FusionHead(nn.Module):
    """Section 3.3: two (B, 512) vectors to logits (B, num_classes) and the gate's logits (B, 512).

    Association, weighting, gate. The paper's order and formulas are kept but for the weighting, whose
    equations (12 to 17) are lost in the copy at hand: squeeze-and-excitation of the associated vector weighs
    the streams' own. ``reduction`` is how much narrower the squeeze is than the 1024 features, 16 as in
    squeeze-and-excitation networks, since the paper gives none.
    """

    def __init__(self, num_classes: int, reduction: int) -> None:
        super().__init__()
        self.association = _Association()
        self.squeeze = nn.Linear(2 * _FEATURES, 2 * _FEATURES // reduction)
        self.excitation = nn.Linear(2 * _FEATURES // reduction, 2 * _FEATURES)
        self.gate = nn.Linear(_FEATURES, _FEATURES)
        self.fc_cls = nn.Linear(_FEATURES, num_classes)
        initialise(self)
        # The association starts as the identity, as in non-local networks.
        nn.init.zeros_(self.association.w_z.weight)

    def forward(self, skeleton: Tensor, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the fused vector, and those of the gate: G = sigmoid(gate)."""
        associated = self.association(torch.cat([skeleton, rgb], 1))
        weights = self.excitation(functional.relu(self.squeeze(associated))).sigmoid()
        skeleton_weights, rgb_weights = weights.chunk(2, 1)
        skeleton, rgb = skeleton * skeleton_weights, rgb * rgb_weights
        gate = self.gate(skeleton)
        return self.fc_cls(skeleton * gate.sigmoid() + rgb * (-gate).sigmoid()), gate


class _Association(nn.Module):
    """Equations 8 to 11: z = W_z NonLocal(x) + x, over the (B, M) features as M positions of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.theta, self.beta, self.g, self.w_z = (nn.Conv1d(1, 1, 1, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        positions = x.unsqueeze(1)
        # One head: programs made by torch.export and ONNX expect that axis.
        theta, beta, g = (conv(positions).mT.unsqueeze(1) for conv in (self.theta, self.beta, self.g))
        # Never writes the M x M similarities down where the device has a kernel for that.
        y = functional.scaled_dot_product_attention(theta, beta, g, scale=1.0)
        return x + self.w_z(y.squeeze(1).mT).squeeze(1)


class AMFINet(nn.Module):
    """Logits (B, num_classes) of both modalities together, and the gate's logits (B, 512).

    ``graph`` names the skeletons' joints: "coco17" here, "ntu25" in the paper; ``dropout`` is the skeleton
    stream's; ``reduction`` is FusionHead's. An unknown graph raises HarcacheError.

    For 60 classes and "ntu25" it has 40.20 M parameters (RGB 33.17, skeleton 6.61, fusion 0.43) where the
    paper says 43.26 M; the paper gives no width of the squeeze, and with ``reduction=1`` there are 42.17 M.
    One clip of 16 frames of 112 x 112 pixels and 300 frames of two skeletons takes 71.34 G multiply-adds (RGB
    40.70, skeleton 30.64, fusion 0.003) where the paper says 5.67 G. That is less than torchvision's
    ResNet3D-18 takes alone: the one the paper cites pools after its stem, and with such a pooling
    torchvision's would take 6.42 G, so the skeletons are hardly counted either.
    """

    def __init__(
        self, num_classes: int, graph: str = "coco17", dropout: float = 0.5, reduction: int = 16
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "num_classes": num_classes,
            "graph": graph,
            "dropout": dropout,
            "reduction": reduction,
        }
        self.rgb_backbone = _RGBBackbone()
        self.skeleton_backbone = AGCNBackbone(graph, dropout)
        self.fusion = FusionHead(num_classes, reduction)
        self.frozen = False

    @classmethod
    def from_streams(cls, rgb: ResNet3D18, skeleton: AGCN, reduction: int = 16) -> Self:
        """Return a network that starts with a copy of both trained streams' weights and a fresh fusion.

        Raises:
            HarcacheError: the streams differ in their number of classes.
        """
        classes = rgb.config["num_classes"], skeleton.config["num_classes"]
        if classes[0] != classes[1]:
            raise HarcacheError(
                f"the RGB stream has {classes[0]} classes, the skeleton stream {classes[1]}; "
                f"train both with the same"
            )
        network = cls(**skeleton.config, reduction=reduction)
        network.rgb_backbone.load_state_dict(rgb.backbone.state_dict())
        network.skeleton_backbone.load_state_dict(skeleton.backbone.state_dict())
        return network

    def freeze_streams(self) -> None:
        """Leave only the fusion to learn: no gradient, no batch statistics and no dropout in the streams.

        This is how the paper trains, for 6 epochs at learning rate 0.01, divided by 10 at the third. It holds
        for this object: a checkpoint does not keep it.
        """
        self.frozen = True
        self._streams().requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all that is not frozen."""
        super().train(mode)
        if self.frozen:
            self._streams().eval()
        return self

    def forward(self, rgb: Tensor, skeletons: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits, gate); the gate is G's logits, so that ``amfi_loss`` stays exact where G is near 1.

        ``rgb`` is (B, 3, T, H, W) float 0..1, in the paper (B, 3, 16, 112, 112); ``skeletons`` is
        (B, 3, T', V, M) float as AGCNBackbone takes it. T and T' need not agree.

        Raises:
            HarcacheError: an input has another shape, or their numbers of clips differ.
        """
        skeleton_vector, rgb_vector = self.skeleton_backbone(skeletons), self.rgb_backbone(rgb)
        if skeleton_vector.shape[0] != rgb_vector.shape[0]:
            raise HarcacheError(
                f"there are frames of {len(rgb)} clips and skeletons of {len(skeletons)}; give the same clips"
            )
        return self.fusion(skeleton_vector, rgb_vector)

    def _streams(self) -> nn.ModuleList:
        return nn.ModuleList([self.rgb_backbone, self.skeleton_backbone])


def amfi_loss(logits: Tensor, gate: Tensor, labels: Tensor, gate_weight: float = 1.5) -> Tensor:
    """Return cross-entropy + ``gate_weight`` * mean(-log(1 - G)) (equations 20 and 21), a scalar.

    ``logits`` (B, num_classes) and ``gate`` (B, 512) are what AMFINet gives, ``labels`` is (B,) int64.
    ``gate_weight`` is the paper's lambda. The second term shuts the gate, that is, it asks for the RGB vector
    wherever the skeleton's does not pay. -log(1 - sigmoid(x)) = softplus(x), which no x overflows.
    """
    return functional.cross_entropy(logits, labels) + gate_weight * functional.softplus(gate).mean()

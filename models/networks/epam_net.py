"""EPAM-Net (paper, section 3 and figure 2): an RGB stream guided by a pose stream, each with its own head.

The pose features say where and when to look. The streams meet nowhere else, so each is trained alone first,
and the scores of their heads are added at the end.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

from torch import Tensor, nn

from harcache.models.networks.attention import NestedAttention, SpatialTemporalAttention
from harcache.models.networks.xshiftnet import (
    ClassHead,
    PoseXShiftNet,
    RGBXShiftNet,
    initialise,
    pose_backbone,
    rgb_backbone,
)
from harcache.pipeline.base.errors import HarcacheError, did_you_mean

__all__ = ["EPAMNet"]

Attention = Literal["nested", "spatial_temporal", "none"]


class EPAMNet(nn.Module):
    """Logits of both streams; their sum is the prediction and the sum of their cross-entropies the loss.

    Defaults are the paper's. ``rgb_frames`` matters to the attention "spatial_temporal" alone, which is made
    for one number of frames. An attention that does not exist raises HarcacheError.
    """

    def __init__(
        self,
        num_classes: int,
        attention: Attention = "nested",
        width: int = 24,
        rgb_blocks: Sequence[int] = (3, 5, 11, 7),
        pose_blocks: Sequence[int] = (5, 11, 7),
        dropout: float = 0.5,
        in_channels: int = 17,
        rgb_shift: float = 0.25,
        pose_shift: float = 0.5,
        rgb_frames: int = 16,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "num_classes": num_classes,
            "attention": attention,
            "width": width,
            "rgb_blocks": list(rgb_blocks),
            "pose_blocks": list(pose_blocks),
            "dropout": dropout,
            "in_channels": in_channels,
            "rgb_shift": rgb_shift,
            "pose_shift": pose_shift,
            "rgb_frames": rgb_frames,
        }
        self.rgb_backbone = rgb_backbone(width, rgb_blocks, rgb_shift)
        self.pose_backbone = pose_backbone(in_channels, width, pose_blocks, pose_shift)
        self.attention_module = _attention(attention, self.pose_backbone.features, rgb_frames)
        self.rgb_cls_head = ClassHead(self.rgb_backbone.features, num_classes, dropout)
        self.pose_cls_head = ClassHead(self.pose_backbone.features, num_classes, dropout)
        initialise(self)

    @classmethod
    def from_streams(
        cls,
        rgb: RGBXShiftNet,
        pose: PoseXShiftNet,
        attention: Attention = "nested",
        dropout: float = 0.5,
        rgb_frames: int = 16,
    ) -> Self:
        """Return a network that starts with a copy of both trained streams' weights and a fresh attention.

        Raises:
            HarcacheError: the streams differ in width or number of classes, or one is an X3D.
        """
        _check_streams(rgb.config, pose.config)
        network = cls(
            rgb.config["num_classes"],
            attention,
            rgb.config["width"],
            rgb.config["blocks"],
            pose.config["blocks"],
            dropout,
            pose.config["in_channels"],
            rgb.config["shift"],
            pose.config["shift"],
            rgb_frames,
        )
        network.rgb_backbone.load_state_dict(rgb.backbone.state_dict())
        network.pose_backbone.load_state_dict(pose.backbone.state_dict())
        network.rgb_cls_head.load_state_dict(rgb.cls_head.state_dict())
        network.pose_cls_head.load_state_dict(pose.cls_head.state_dict())
        return network

    def forward(self, rgb: Tensor, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        """Return (rgb_logits, pose_logits), each (B, num_classes) float.

        ``rgb`` is (B, 3, T, H, W) float, normalised; ``heatmaps`` is (B, in_channels, T', h, w) float 0..1.
        RGB frame t and heatmap t * T' / T belong to the same frame of the video.

        Raises:
            HarcacheError: T' is no multiple of T, or the streams' feature maps differ in height or width.
        """
        rgb_features, pose_features = self.rgb_backbone(rgb), self.pose_backbone(heatmaps)
        pose_logits = self.pose_cls_head(pose_features)
        if self.attention_module is not None:
            aligned = _every_nth(pose_features, rgb.shape[2])
            self._check_sizes(rgb_features, aligned)
            rgb_features = rgb_features + rgb_features * self.attention_module(aligned)
        return self.rgb_cls_head(rgb_features), pose_logits

    def attention_map(self, heatmaps: Tensor, rgb_frames: int) -> Tensor:
        """Return where the RGB stream is told to look: (B, rgb_frames, h, w) float in 0..1.

        Raises:
            HarcacheError: the network has no attention, or T' is no multiple of ``rgb_frames``.
        """
        if self.attention_module is None:
            raise HarcacheError(
                "this network was made with attention 'none'; it has no attention map to show"
            )
        return self.attention_module(_every_nth(self.pose_backbone(heatmaps), rgb_frames)).squeeze(1)

    def _check_sizes(self, rgb: Tensor, pose: Tensor) -> None:
        if rgb.shape[3:] != pose.shape[3:]:
            frames, poses = len(self.config["rgb_blocks"]), len(self.config["pose_blocks"])
            raise HarcacheError(
                f"the RGB features are {_size(rgb)} and the pose features {_size(pose)}, but must agree; "
                f"with {frames} RGB and {poses} pose stages, give frames about "
                f"{2.0 ** (1 + frames - poses):g} times as high and wide as heatmaps"
            )


def _attention(name: str, channels: int, frames: int) -> nn.Module | None:
    if name == "none":
        return None
    if name == "nested":
        return NestedAttention()
    if name == "spatial_temporal":
        return SpatialTemporalAttention(channels, frames)
    known = ("nested", "spatial_temporal", "none")
    raise HarcacheError(f"there is no attention '{name}'. {did_you_mean(name, known)}")


def _every_nth(features: Tensor, frames: int) -> Tensor:
    """Take ``frames`` of the features' frames, evenly from the first (section 3.3, temporal alignment)."""
    given = features.shape[2]
    if frames < 1 or given % frames:
        raise HarcacheError(
            f"{given} heatmaps cannot be aligned with {frames} RGB frames; give a multiple, such as 48 and 16"
        )
    return features[:, :, :: given // frames]


def _size(features: Tensor) -> str:
    return f"{features.shape[3]}x{features.shape[4]}"


def _check_streams(rgb: dict[str, Any], pose: dict[str, Any]) -> None:
    for key in ("num_classes", "width"):
        if rgb[key] != pose[key]:
            raise HarcacheError(
                f"the RGB stream has {key} {rgb[key]}, the pose stream {pose[key]}; train both with the same"
            )
    for name, config in (("RGB", rgb), ("pose", pose)):
        if config["temporal_kernel"] != 1 or config.get("hidden"):
            raise HarcacheError(
                f"the {name} stream is an X3D; EPAM-Net joins X-ShiftNets, so train one of those"
            )

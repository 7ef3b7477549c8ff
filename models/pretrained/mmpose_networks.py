"""mmpose's top-down networks, built from their configs without what only training needs."""

from pathlib import Path
from typing import Any

from harcache.models.pretrained import mmpose_stand_ins
from harcache.models.pretrained.person_crops import PersonCrop
from harcache.models.pretrained.weight_files import load_tensors
from harcache.pipeline.base.errors import HarcacheError

__all__ = ["build", "crop_of", "gives_heatmaps", "read_config"]

_KEYPOINTS = 17


def read_config(path: Path) -> Any:
    """Read a config, which runs as Python code.

    Raises HarcacheError for one that is not of a top-down network for COCO's keypoints.
    """
    from mmengine.config import Config

    config = Config.fromfile(path)
    try:
        trained_on = config.test_dataloader.dataset.type
        head, decoder = config.model.head.type, config.model.head.decoder.type
        kind = config.model.type
    except (AttributeError, KeyError) as error:
        raise HarcacheError(
            f"{path}: not a top-down config of mmpose 1.x ({error}); use such a config"
        ) from error
    if trained_on != "CocoDataset" or kind != "TopdownPoseEstimator":
        raise HarcacheError(
            f"{path}: a {kind} with a {head} trained on {trained_on} with {decoder}; "
            "expected a top-down network for the 17 keypoints of CocoDataset, such as an HRNet"
        )
    return config


def gives_heatmaps(config: Any) -> bool:
    """Whether the network's output is heatmaps, also of mirrored crops."""
    flip_mode = config.model.get("test_cfg", {}).get("flip_mode", "heatmap")
    return config.model.head.type == "HeatmapHead" and flip_mode == "heatmap"


def crop_of(config: Any, path: Path) -> PersonCrop:
    """Return the region that a network sees, from the config's own steps; HarcacheError for other steps."""
    from mmpose.structures.bbox import get_udp_warp_matrix, get_warp_matrix

    steps = [dict(step) for step in config.test_dataloader.dataset.pipeline]
    known = ["LoadImage", "GetBBoxCenterScale", "TopdownAffine", "PackPoseInputs"]
    if [step["type"] for step in steps] != known:
        found = ", ".join(step["type"] for step in steps)
        raise HarcacheError(f"{path}: its test pipeline is {found}; expected {', '.join(known)}")
    return PersonCrop(
        tuple(steps[2]["input_size"]),
        steps[1].get("padding", 1.25),
        get_udp_warp_matrix if steps[2].get("use_udp", False) else get_warp_matrix,
    )


def build(config: Any, path: Path, weights: Path) -> Any:
    """Return the network of a config with its weights, in eval mode, batch norms of its backbone folded.

    Raises HarcacheError where it finds other keypoints, or the weights do not fit.
    """
    from mmengine.registry import init_default_scope

    with mmpose_stand_ins.without_training():
        from mmpose.models import build_pose_estimator

    init_default_scope("mmpose")
    # The config would fetch the backbone's ImageNet weights, which the checkpoint replaces.
    config.model.backbone.init_cfg = None
    _take_from_mmpose(config.model, path)
    model = build_pose_estimator(config.model).eval()
    found = getattr(model.head, "out_channels", None) or getattr(model.head, "num_joints", None)
    if found != _KEYPOINTS:
        raise HarcacheError(f"{path}: finds {found} keypoints; expected COCO's {_KEYPOINTS}")
    _load_state(model, weights)
    model.backbone = _fused(model.backbone)
    return model


def _take_from_mmpose(model: Any, path: Path) -> None:
    """Take the parts that a config takes from mmdet, such as RTMPose's backbone, from mmpose's copies."""
    from mmpose.registry import MODELS

    for part in (model.backbone, model.get("neck") or {}):
        if part.get("_scope_") != "mmdet":
            continue
        if part["type"] in MODELS.module_dict:
            del part["_scope_"]
        elif mmpose_stand_ins.stands_in("mmdet"):
            raise HarcacheError(
                f"{path}: its {part['type']} is mmdet's, which is not installed; use another config, or "
                "install mmdet"
            )


def _load_state(model: Any, path: Path) -> None:
    saved = load_tensors(path)
    try:
        model.load_state_dict(saved.get("state_dict", saved))
    except RuntimeError as error:
        raise HarcacheError(
            f"{path}: these weights don't fit the pose config ({str(error).splitlines()[1].strip()[:200]}); "
            "name the weights that belong to the config"
        ) from error


def _fused(backbone: Any) -> Any:
    """Fold batch norm into the convolutions before it, so that half precision rounds only once."""
    from mmcv.cnn import fuse_conv_bn

    return fuse_conv_bn(backbone)

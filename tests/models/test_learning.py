"""Promises of the networks as learners: they fit real clips, by gradients that reach every parameter.

The clips are the demo's own figures, drawn small, with the true keypoints as poses.
"""

from functools import cache

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from harcache.models.networks.epam_net import EPAMNet
from harcache.models.networks.xshiftnet import PoseXShiftNet, RGBXShiftNet
from harcache.pipeline.datasets.drawn_figures.backgrounds import make_room
from harcache.pipeline.datasets.drawn_figures.figures import render
from harcache.pipeline.datasets.drawn_figures.performers import make_look
from harcache.pipeline.datasets.drawn_figures.scenes import make_scene
from harcache.stages.crop import global_box
from harcache.stages.heatmap import draw_heatmaps
from tests.models.wild_weights import wild

CLIPS, CLASSES = 16, 4
RGB_FRAMES, FRAMES, SIDE = 4, 8, 64
RGB = {"width": 16, "blocks": (1, 2, 1), "dropout": 0}
POSE = {"width": 16, "blocks": (2, 1), "dropout": 0}
EPAM = {"width": 16, "rgb_blocks": (1, 2, 1), "pose_blocks": (2, 1), "dropout": 0, "rgb_frames": RGB_FRAMES}
X3D = {"shift": 0, "temporal_kernel": 3}
NETWORKS = {
    "rgb": lambda: RGBXShiftNet(CLASSES, **RGB),
    "pose": lambda: PoseXShiftNet(CLASSES, **POSE),
    "rgb x3d": lambda: RGBXShiftNet(CLASSES, hidden=64, **RGB, **X3D),
    "pose x3d": lambda: PoseXShiftNet(CLASSES, **POSE, **X3D),
    "epam": lambda: EPAMNet(CLASSES, **EPAM),
    "epam, attention of [38]": lambda: EPAMNet(CLASSES, "spatial_temporal", **EPAM),
    "epam, no attention": lambda: EPAMNet(CLASSES, "none", **EPAM),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def draw_clip(action, take):
    """Return a clip's RGB (T, H, W, 3) 0..1, heatmaps (T', 17, h, w) and label."""
    rng = np.random.default_rng((action, take))
    look = make_look(np.random.default_rng(take))
    room = make_room((240, 320), np.random.default_rng(take % 2))
    scene = make_scene(action, 2, (look,), FRAMES, room, rng, rng)
    x1, y1, x2, y2 = global_box(scene.joints, scene.size)
    seen = [render(scene, t)[y1:y2, x1:x2] for t in range(0, FRAMES, FRAMES // RGB_FRAMES)]
    rgb = [cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in seen]
    keypoints = (scene.joints - (x1, y1)) * (SIDE / 4) / (x2 - x1, y2 - y1)
    heatmaps = draw_heatmaps(keypoints, np.ones(keypoints.shape[:3]), SIDE // 4, 0.6)
    return np.stack(rgb) / np.float32(255), heatmaps


@cache
def demo_clips():
    """Return RGB, heatmaps and labels of 16 clips: 4 takes each of waving, drinking, lifting and kicking."""
    actions = (3, 5, 7, 10)
    drawn = [draw_clip(actions[i % CLASSES], i // CLASSES) for i in range(CLIPS)]
    rgb, heatmaps = (torch.from_numpy(np.stack(values)) for values in zip(*drawn, strict=True))
    return rgb.permute(0, 4, 1, 2, 3) * 4 - 2, heatmaps.transpose(1, 2), torch.arange(CLIPS) % CLASSES


def heads_of(network, layout=torch.contiguous_format):
    """Return the logits of each of the network's heads for the 16 clips."""
    rgb, heatmaps = (x.contiguous(memory_format=layout) for x in demo_clips()[:2])
    if isinstance(network, EPAMNet):
        return network(rgb, heatmaps)
    return (network(rgb if isinstance(network, RGBXShiftNet) else heatmaps),)


def loss_of(network):
    return sum(functional.cross_entropy(head, demo_clips()[2]) for head in heads_of(network))


def relative_error(found, wanted):
    return max(
        ((a.float() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, wanted, strict=True)
    )


# Slow: a training each.
@pytest.mark.slow
@every_network
def test_sixteen_clips_are_learnt_to_the_last(name):
    network = NETWORKS[name]()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(8):
        for _ in range(10):
            optimiser.zero_grad()
            loss_of(network.train()).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 40)
            optimiser.step()
        with torch.no_grad():
            predicted = sum(heads_of(network.eval())).argmax(1)
        if (predicted == demo_clips()[2]).all():
            return
    pytest.fail(f"after 80 steps it takes {demo_clips()[2].tolist()} for {predicted.tolist()}")


@every_network
def test_gradients_reach_every_parameter(name):
    network = wild(NETWORKS[name]())
    loss_of(network).backward()
    lost = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert lost == []


@every_network
def test_evaluation_agrees_with_training_once_the_statistics_are_known(name):
    network = wild(NETWORKS[name]())
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        trained, evaluated = heads_of(network.train()), heads_of(network.eval())
    # The statistics kept divide by one value less.
    assert relative_error(evaluated, trained) < 0.01


@every_network
def test_bfloat16_agrees_to_its_precision(name):
    network = wild(NETWORKS[name]()).eval()
    with torch.no_grad():
        wanted = heads_of(network)
        with torch.autocast("cpu", torch.bfloat16):
            found = heads_of(network)
    # Eight bits of mantissa give 0.4 % a rounding; it adds up over some twenty layers.
    assert relative_error(found, wanted) < 0.05


@every_network
def test_the_memory_layout_of_inputs_and_weights_changes_nothing(name):
    network = wild(NETWORKS[name]()).eval()
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    with torch.no_grad():
        wanted = heads_of(network)
        for value in network.parameters():
            if value.ndim in layouts:
                value.data = value.contiguous(memory_format=layouts[value.ndim])
        found = heads_of(network, torch.channels_last_3d)
    assert relative_error(found, wanted) < 1e-5

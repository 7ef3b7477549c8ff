"""Promises of streaming.skeletons: what a body does stays, where it stands goes; mirrors swap both sides."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from harcache.cache.streaming.skeletons import prepare_skeletons
from harcache.models.networks.agcn import GRAPHS
from harcache.pipeline.skeletons.joints import COCO_MIRRORED, NTU_MIRRORED

HIP, SPINE, LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_HAND, RIGHT_HAND = 0, 1, 4, 8, 7, 11


def bodies(clips=3, frames=5, persons=2):
    """Random skeletons in space, (clips, frames, persons, 25, 3) metres before a sensor."""
    return torch.rand(clips, frames, persons, 25, 3) + torch.tensor([0.3, -0.2, 2.5])


def prepared(flip=False, **arrays):
    clips = len(next(iter(arrays.values())))
    return prepare_skeletons({**arrays, "flip": torch.full((clips,), flip)}, rgb_size=8)


def mirrored(skeletons, joints):
    return skeletons[:, :, :, list(joints)] * torch.tensor([-1, 1, 1]).view(1, 3, 1, 1, 1)


def test_keypoints_lie_around_the_middle_of_the_crop_with_their_scores():
    keypoints = torch.rand(2, 4, 3, 17, 3).half()
    skeletons = prepared(keypoints=keypoints)["skeletons"]
    assert skeletons.shape == (2, 3, 4, 17, 3) and skeletons.dtype == torch.float32
    x, y, score = keypoints[1, 2, 0, 5].float()
    torch.testing.assert_close(skeletons[1, :, 2, 5, 0], torch.stack([2 * x - 1, 2 * y - 1, score]))


def test_who_is_not_there_is_zero():
    keypoints, positions = torch.rand(2, 4, 2, 17, 3).half(), bodies(2, 4)
    keypoints[:, :, 1, :, :2] = torch.nan
    keypoints[:, :, 1, :, 2] = 0
    positions[:, :2, 0] = positions[:, :, 1] = torch.nan
    for skeletons in (prepared(keypoints=keypoints), prepared(positions=positions)):
        assert not skeletons["skeletons"][..., 1].any()
        assert skeletons["skeletons"][:, :, 2:, :, 0].abs().sum((1, 3)).all()
    assert not prepared(positions=torch.full((1, 4, 2, 25, 3), torch.nan))["skeletons"].any()


def test_a_body_is_seen_alike_from_wherever_and_however_far():
    positions = bodies()
    turned = torch.from_numpy(Rotation.random(random_state=3).as_matrix()).float()
    elsewhere = positions @ turned.T + torch.tensor([1.0, -2.0, 0.5])
    there, here = (prepared(positions=given)["skeletons"] for given in (elsewhere, positions))
    torch.testing.assert_close(there, here, rtol=0, atol=1e-4)
    # Distances are kept: metres stay metres, and a second person keeps their place beside the first.
    first, second = here[1, :, 3, RIGHT_HAND, 0], here[1, :, 3, LEFT_HAND, 1]
    apart = (positions[1, 3, 0, RIGHT_HAND] - positions[1, 3, 1, LEFT_HAND]).norm()
    torch.testing.assert_close((first - second).norm(), apart)


def test_the_first_persons_spine_is_upright_and_their_left_is_ahead_on_x():
    positions = bodies()
    positions[:, 0, 0, SPINE] = torch.nan  # not yet seen
    first = prepared(positions=positions)["skeletons"][:, :, 1, :, 0]
    assert first[:, :, SPINE].abs().max() < 1e-6
    assert first[:, :2, HIP].abs().max() < 1e-5 and (first[:, 2, HIP] < 0).all()
    shoulders = first[:, :, LEFT_SHOULDER] - first[:, :, RIGHT_SHOULDER]
    assert (shoulders[:, 0] > 0).all() and shoulders[:, 1].abs().max() < 1e-5


def test_a_body_without_directions_is_only_moved():
    positions = bodies(1, 2, 1)
    positions[:, :, :, HIP] = positions[:, :, :, SPINE]
    moved = prepared(positions=positions)["skeletons"][0, :, 1, :, 0]
    torch.testing.assert_close(moved, (positions[0, 1, 0] - positions[0, 0, 0, SPINE]).T)


@pytest.mark.parametrize(("name", "joints"), [("keypoints", COCO_MIRRORED), ("positions", NTU_MIRRORED)])
def test_a_flip_mirrors_frames_and_skeletons_together(name, joints):
    poses = bodies()[..., : len(joints), :] if name == "positions" else torch.rand(3, 5, 2, 17, 3).half()
    frames = torch.randint(0, 256, (3, 2, 8, 8, 3), dtype=torch.uint8)
    plain = prepared(rgb=frames, **{name: poses})
    flip = torch.tensor([True, False, True])
    mixed = prepare_skeletons({"rgb": frames, name: poses, "flip": flip}, rgb_size=8)
    assert torch.equal(mixed["rgb"][1], plain["rgb"][1])
    assert torch.equal(mixed["skeletons"][1], plain["skeletons"][1])
    assert torch.equal(mixed["rgb"][0], plain["rgb"][0].flip(-1))
    assert torch.equal(mixed["skeletons"][0], mirrored(plain["skeletons"], joints)[0])


def test_a_mirrored_skeleton_in_space_is_that_of_the_mirrored_person():
    positions = bodies()
    person = positions[:, :, :, list(NTU_MIRRORED)] * torch.tensor([-1, 1, 1])
    flipped, seen = prepared(flip=True, positions=positions), prepared(positions=person)
    torch.testing.assert_close(flipped["skeletons"], seen["skeletons"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("graph", "joints"), [("coco17", COCO_MIRRORED), ("ntu25", NTU_MIRRORED)])
def test_the_bones_of_a_mirrored_graph_are_its_own(graph, joints):
    bones = {frozenset(bone) for bone in enumerate(GRAPHS[graph])}
    assert [joints[joint] for joint in joints] == list(range(len(GRAPHS[graph])))
    assert {frozenset(joints[joint] for joint in bone) for bone in bones} == bones


def test_large_frames_are_averaged_down_and_small_ones_stay():
    small = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8)
    ready = prepared(rgb=small)["rgb"]
    assert ready.shape == (2, 3, 3, 8, 8)
    np.testing.assert_allclose(ready, small.numpy().transpose(0, 4, 1, 2, 3) / 255, rtol=1e-6)
    # Stripes finer than the pixels to come: whoever picks pixels would see black or white.
    stripes = torch.zeros(1, 1, 32, 32, 3, dtype=torch.uint8)
    stripes[:, :, :, ::2] = 255
    grey = prepared(rgb=stripes)["rgb"]
    assert grey.shape == (1, 3, 1, 8, 8) and (grey - 0.5).abs().max() < 0.05

"""Promises of models.agcn: the body's graph, learned and per-clip graphs on top, persons that count alike."""

import pytest
import torch
from torch import nn

from harcache.models.checkpoints import load_network, save_checkpoint
from harcache.models.networks.agcn import AGCN, GRAPHS, AGCNBackbone, partitions
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.skeletons.joints import COCO_MIRRORED
from tests.models.wild_weights import wild

JOINTS = {"coco17": 17, "ntu25": 25}
# As 2s-AGCN lists the bones of Kinect's skeleton, counted from 1.
KINECT_BONES = (
    "1-2 2-21 3-21 4-3 5-21 6-5 7-6 8-7 9-21 10-9 11-10 12-11 "
    "13-1 14-13 15-14 16-15 17-1 18-17 19-18 20-19 22-23 23-8 24-25 25-12"
)


@pytest.fixture
def small(monkeypatch):
    """Blocks of few channels with the strides of the real ones, where size does not matter."""
    monkeypatch.setattr("harcache.models.networks.agcn._BLOCKS", ((8, 1), (8, 1), (16, 2), (32, 2), (32, 1)))


def skeletons(graph="coco17", clips=2, frames=12, persons=2):
    return torch.rand(clips, 3, frames, JOINTS[graph], persons)


@pytest.mark.parametrize("graph", GRAPHS)
def test_each_joint_takes_a_mean_of_each_subset(graph):
    adjacency = partitions(graph)
    joints = JOINTS[graph]
    assert adjacency.shape == (3, joints, joints)
    root, centripetal, centrifugal = adjacency
    assert torch.equal(root, torch.eye(joints))
    centre = [joint for joint, inner in enumerate(GRAPHS[graph]) if inner == joint]
    assert torch.nonzero(centripetal.sum(0) == 0).flatten().tolist() == centre
    ends = sorted(set(range(joints)) - set(GRAPHS[graph]))
    assert torch.nonzero(centrifugal.sum(0) == 0).flatten().tolist() == ends
    for subset in (centripetal, centrifugal):
        sums = subset.sum(0)
        torch.testing.assert_close(sums[sums > 0], torch.ones(int((sums > 0).sum())))


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_subsets_together_are_the_body_each_bone_once_each_way(graph):
    links = (partitions(graph) > 0).int()
    assert links.sum(0).max() == 1
    assert torch.equal(links[1], links[2].T)
    assert links[1].sum() == JOINTS[graph] - 1
    assert (torch.linalg.matrix_power(links.sum(0).double(), JOINTS[graph]) > 0).all(), "a joint is cut off"


def test_kinects_bones_are_those_of_2s_agcn():
    bones = {tuple(int(joint) - 1 for joint in bone.split("-")) for bone in KINECT_BONES.split()}
    assert {(joint, inner) for joint, inner in enumerate(GRAPHS["ntu25"]) if joint != inner} == bones


def test_cocos_graph_is_the_same_in_a_mirror():
    mirror = list(COCO_MIRRORED)
    adjacency = partitions("coco17")
    assert torch.equal(adjacency[:, mirror][:, :, mirror], adjacency)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("frames", "persons"), [(1, 1), (7, 3)])
def test_any_number_of_frames_and_persons_gives_one_vector_a_clip(graph, frames, persons, small):
    assert AGCNBackbone(graph, 0.5)(skeletons(graph, 2, frames, persons)).shape == (2, 32)


def test_the_paper_has_ten_blocks_and_512_features():
    network = AGCN(60, "ntu25")
    assert [block.temporal[0].out_channels for block in network.backbone.blocks] == (
        [64] * 3 + [128] * 3 + [256] * 3 + [512]
    )
    assert [block.temporal[0].stride[0] for block in network.backbone.blocks] == [
        *(1, 1, 1),
        *(2, 1, 1),
        *(2, 1, 1),
        1,
    ]
    assert sum(value.numel() for value in network.parameters()) == 6_637_344


def test_a_spatial_convolution_is_equation_6_term_by_term():
    layer = wild(AGCNBackbone("coco17", 0)).blocks[3].spatial.eval()
    x = torch.rand(2, 64, 5, 17)
    weights = layer.conv.weight[..., 0, 0].chunk(3, 1)
    theta, phi = layer.theta(x).chunk(3, 1), layer.phi(x).chunk(3, 1)
    total = torch.zeros(2, 128, 5, 17)
    for k in range(3):
        scores = torch.einsum("nctu,nctv->nuv", theta[k], phi[k]) / (theta[k].shape[1] * 5)
        graph = layer.fixed[k] + layer.learned[k] + scores.exp() / scores.exp().sum(1, keepdim=True)
        total += torch.einsum("oc,nctu,nuv->notv", weights[k], x, graph)
    expected = torch.relu(layer.bn(total) + layer.shortcut(x))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_the_learned_graph_starts_at_zero_and_the_bodys_graph_is_never_learned(small):
    network = AGCN(4)
    learned = [value for name, value in network.named_parameters() if "learned" in name]
    assert len(learned) == 5
    assert not any(value.any() for value in learned)
    assert not any("fixed" in name for name in network.state_dict())


def test_each_clip_has_a_graph_of_its_own(small):
    layer = wild(AGCNBackbone("coco17", 0)).blocks[1].spatial
    x = torch.rand(2, 8, 5, 17)
    graphs = layer._similarity(x)
    torch.testing.assert_close(graphs.sum(2), torch.ones(2, 3, 17))
    assert not torch.allclose(graphs[0], graphs[1])
    torch.testing.assert_close(layer._similarity(x[1:]), graphs[1:])


def test_clips_do_not_mix_and_the_order_of_persons_does_not_matter(small):
    network = wild(AGCN(4)).eval()
    x = skeletons(clips=3)
    result = network(x)
    torch.testing.assert_close(network(x[1:2]), result[1:2])
    torch.testing.assert_close(network(x.flip(4)), result)
    assert not torch.allclose(result[0], result[1])


def test_persons_count_alike(small):
    backbone = wild(AGCNBackbone("coco17", 0)).eval()
    x = skeletons()
    each = torch.stack([backbone(x[..., :1]), backbone(x[..., 1:])])
    torch.testing.assert_close(backbone(x), each.mean(0))


def test_nan_is_nobody_as_zero_is(small):
    network = wild(AGCN(4)).eval()
    absent = skeletons()
    absent[0, :, 3:, :, 1] = torch.nan
    absent[1, :, 2, 5] = torch.nan
    assert torch.equal(network(absent), network(absent.nan_to_num(0)))
    assert absent.isnan().any(), "the caller's array was changed"


def test_gradients_reach_every_parameter(small):
    network = wild(AGCN(4, dropout=0)).double()
    network(skeletons().double()).logsumexp(1).sum().backward()
    assert [name for name, value in network.named_parameters() if not value.grad.abs().max() > 1e-12] == []


def test_a_saved_stream_comes_back_whole(small, tmp_path):
    network = wild(AGCN(4, "ntu25", 0.25))
    save_checkpoint(tmp_path / "net.pt", network)
    again, checkpoint = load_network(tmp_path / "net.pt")
    assert checkpoint.config == {"num_classes": 4, "graph": "ntu25", "dropout": 0.25}
    assert torch.equal(again.eval()(x := skeletons("ntu25")), network.eval()(x))


def test_dropout_is_the_blocks():
    rates = {module.p for module in AGCN(4, dropout=0.3).modules() if isinstance(module, nn.Dropout)}
    assert rates == {0.3}


@pytest.mark.parametrize(
    "shape", [(2, 3, 12, 25, 2), (2, 12, 2, 17, 3), (2, 3, 12, 17), (2, 3, 0, 17, 1), (2, 3, 12, 17, 0)]
)
def test_skeletons_of_another_shape_are_refused(shape, small):
    with pytest.raises(HarcacheError, match=r"expected \(clips, 3, frames, 17, persons\)") as error:
        AGCN(4)(torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_a_graph_that_does_not_exist_is_refused():
    with pytest.raises(HarcacheError, match=r"there is no graph 'coco'. Did you mean 'coco17'"):
        AGCN(4, "coco")

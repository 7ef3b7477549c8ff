"""Promises of models.epam_net: the published network, any sizes that fit, clear words where they don't."""

import hashlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harcache.benchmarks.conv3d import EPAMNet3d
from harcache.models.networks.epam_net import EPAMNet
from harcache.models.networks.xshiftnet import PoseXShiftNet, RGBXShiftNet
from harcache.pipeline.base.errors import HarcacheError
from tests.models.wild_weights import wild

SMALL = {"width": 16, "rgb_blocks": (1, 2, 1), "pose_blocks": (2, 1)}


def count_parameters(network):
    return sum(value.numel() for value in network.parameters())


def twins(classes, width, rgb, pose):
    """The network of this project and the plain transcription of the released one, with the same weights."""
    plain = wild(EPAMNet3d(classes, width, rgb, pose))
    network = EPAMNet(classes, width=width, rgb_blocks=rgb, pose_blocks=pose, dropout=0)
    own = network.state_dict()
    network.load_state_dict({k: v.reshape(own[k].shape) for k, v in plain.state_dict().items()})
    return network, plain


def assert_agree(results, expected):
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_the_numbers_of_parameters_are_the_released_ones():
    assert count_parameters(EPAMNet(60)) == 2_538_717
    assert count_parameters(EPAMNet(120)) == 2_577_717
    assert count_parameters(EPAMNet(60, "spatial_temporal")) == 2_538_610 + 2_507
    assert count_parameters(EPAMNet(60, "none")) == 2_538_610


def test_the_cost_is_the_released_one():
    network = EPAMNet(60).to("meta").eval()
    inputs = torch.empty(1, 3, 16, 224, 224, device="meta"), torch.empty(1, 17, 48, 56, 56, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    assert round(counter.get_total_flops() / 2e9, 3) == 7.618


def test_the_transcription_has_the_names_and_shapes_of_the_released_checkpoint():
    state = EPAMNet3d(60, 24, (3, 5, 11, 7), (5, 11, 7)).state_dict()
    lines = sorted(f"{name} {tuple(value.shape)}\n" for name, value in state.items())
    assert len(lines) == 1071
    assert hashlib.blake2b("".join(lines).encode(), digest_size=8).hexdigest() == "54f5abc0d605ee6a"


@pytest.mark.parametrize("blocks", [((1, 2, 1), (2, 1)), ((2, 1), (3,))])
def test_the_released_arithmetic_is_kept(blocks):
    network, plain = twins(7, 16, *blocks)
    rgb, heatmaps = torch.randn(2, 3, 4, 36, 44), torch.rand(2, 17, 12, 9, 11)
    with torch.no_grad():
        assert_agree(network.eval()(rgb, heatmaps), plain.eval()(rgb, heatmaps))


def test_training_follows_the_released_gradients_and_statistics():
    network, plain = (twin.double() for twin in twins(7, 16, (1, 2), (2,)))
    rgb, heatmaps = torch.randn(2, 3, 4, 32, 32).double(), torch.rand(2, 17, 8, 8, 8).double()
    for twin in (network, plain):
        sum(logits.logsumexp(1).sum() for logits in twin(rgb, heatmaps)).backward()
    wanted = dict(plain.named_parameters())
    for name, value in network.named_parameters():
        torch.testing.assert_close(value.grad, wanted[name].grad.reshape(value.shape), rtol=1e-6, atol=1e-9)
    for name, value in network.named_buffers():
        torch.testing.assert_close(value, plain.get_buffer(name))


def test_the_released_arithmetic_is_kept_at_full_size():
    network, plain = twins(60, 24, (3, 5, 11, 7), (5, 11, 7))
    rgb, heatmaps = torch.randn(1, 3, 16, 224, 224), torch.rand(1, 17, 48, 56, 56)
    with torch.no_grad():
        assert_agree(network.eval()(rgb, heatmaps), plain.eval()(rgb, heatmaps))


def kept_for_the_way_back(network):
    """Return the bytes that a training step at full size keeps until its gradients are known, but weights."""
    network = network.to("meta")
    weights = {value.untyped_storage()._cdata for value in network.state_dict().values()}
    kept = {}

    def keep(x):
        kept[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        inputs = (
            torch.empty(1, 3, 16, 224, 224, device="meta"),
            torch.empty(1, 17, 48, 56, 56, device="meta"),
        )
        logits = network(*inputs)
    assert all(head.requires_grad for head in logits)
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)


def test_training_keeps_less_in_memory_than_the_released_form():
    assert kept_for_the_way_back(EPAMNet(60)) < kept_for_the_way_back(EPAMNet3d(60))


@pytest.mark.parametrize("attention", ["nested", "spatial_temporal", "none"])
@pytest.mark.parametrize(("frames", "heatmaps", "side"), [(4, 12, 32), (4, 4, 40), (4, 8, 48)])
def test_other_sizes_and_frame_ratios_work(attention, frames, heatmaps, side):
    network = EPAMNet(5, attention, rgb_frames=4, **SMALL)
    rgb, pose = network(
        torch.rand(2, 3, frames, side, side), torch.rand(2, 17, heatmaps, side // 4, side // 4)
    )
    assert rgb.shape == pose.shape == (2, 5)
    (rgb.logsumexp(1) + pose.logsumexp(1)).sum().backward()
    assert all(value.grad is not None for value in network.parameters())


def test_attention_moves_the_rgb_scores_and_leaves_the_pose_scores():
    guided, alone = EPAMNet(5, **SMALL).eval(), EPAMNet(5, "none", **SMALL).eval()
    alone.load_state_dict(guided.state_dict(), strict=False)
    inputs = torch.rand(2, 3, 4, 32, 32), torch.rand(2, 17, 12, 8, 8)
    (rgb, pose), (rgb_alone, pose_alone) = guided(*inputs), alone(*inputs)
    assert torch.equal(pose, pose_alone)
    assert not torch.allclose(rgb, rgb_alone)


def test_the_attention_map_is_the_one_that_forward_uses():
    network = EPAMNet(5, **SMALL).eval()
    seen = []
    network.attention_module.register_forward_hook(lambda module, inputs, result: seen.append(result))
    heatmaps = torch.rand(2, 17, 12, 8, 8)
    network(torch.rand(2, 3, 4, 32, 32), heatmaps)
    shown = network.attention_map(heatmaps, 4)
    assert shown.shape == (2, 4, 2, 2)
    assert torch.equal(shown, seen[0].squeeze(1))


def test_no_attention_has_no_map():
    with pytest.raises(HarcacheError, match="has no attention map"):
        EPAMNet(5, "none", **SMALL).attention_map(torch.rand(1, 17, 4, 8, 8), 4)


def test_a_network_made_from_streams_scores_as_they_do():
    rgb, pose = RGBXShiftNet(5, 16, (1, 2, 1)), PoseXShiftNet(5, width=16, blocks=(2, 1))
    network = EPAMNet.from_streams(wild(rgb), wild(pose), "none").eval()
    frames, heatmaps = torch.rand(2, 3, 4, 32, 32), torch.rand(2, 17, 12, 8, 8)
    scores = network(frames, heatmaps)
    assert torch.equal(scores[0], rgb.eval()(frames))
    assert torch.equal(scores[1], pose.eval()(heatmaps))
    assert EPAMNet(**network.config).config == network.config


def test_a_network_made_from_streams_owns_its_weights():
    rgb, pose = RGBXShiftNet(5, 16, (1,)), PoseXShiftNet(5, width=16, blocks=(1,))
    network = EPAMNet.from_streams(rgb, pose)
    torch.nn.init.zeros_(rgb.cls_head.fc_cls.weight)
    assert network.rgb_cls_head.fc_cls.weight.any()


@pytest.mark.parametrize(
    ("rgb", "pose", "message"),
    [
        ({}, {"num_classes": 6}, "the RGB stream has num_classes 5, the pose stream 6"),
        ({"width": 8}, {}, "the RGB stream has width 8, the pose stream 16"),
        ({"temporal_kernel": 3}, {}, "the RGB stream is an X3D"),
    ],
)
def test_streams_that_cannot_be_joined_are_refused(rgb, pose, message):
    small = {"num_classes": 5, "width": 16, "blocks": (1,)}
    with pytest.raises(HarcacheError, match=message):
        EPAMNet.from_streams(RGBXShiftNet(**small | rgb), PoseXShiftNet(**small | pose))


def test_frames_that_cannot_be_aligned_are_refused():
    with pytest.raises(HarcacheError, match="10 heatmaps cannot be aligned with 4 RGB frames"):
        EPAMNet(5, **SMALL)(torch.rand(1, 3, 4, 32, 32), torch.rand(1, 17, 10, 8, 8))


def test_sizes_that_do_not_meet_are_refused():
    with pytest.raises(
        HarcacheError, match=r"features are 2x2 and the pose features 4x4.*frames about 4 times"
    ):
        EPAMNet(5, **SMALL)(torch.rand(1, 3, 4, 32, 32), torch.rand(1, 17, 4, 16, 16))


def test_an_attention_that_does_not_exist_is_refused():
    with pytest.raises(HarcacheError, match=r"there is no attention 'nestd'.*nested"):
        EPAMNet(5, "nestd", **SMALL)

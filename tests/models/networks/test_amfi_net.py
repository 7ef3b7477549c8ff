"""Promises of models.amfi_net: the paper's fusion, a loss that never overflows, streams that stay frozen."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from harcache import models
from harcache.models.checkpoints import load_network, save_checkpoint
from harcache.models.networks.agcn import AGCN
from harcache.models.networks.amfi_net import AMFINet, FusionHead, ResNet3D18, amfi_loss
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.datasets.drawn_figures.backgrounds import make_room
from harcache.pipeline.datasets.drawn_figures.figures import render
from harcache.pipeline.datasets.drawn_figures.performers import make_look
from harcache.pipeline.datasets.drawn_figures.scenes import make_scene, scene_truth
from tests.models.wild_weights import wild


def count_parameters(network):
    return sum(value.numel() for value in network.parameters())


def count_macs(network, *inputs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops() / 2e9


def inputs(clips=2, joints=17):
    return torch.rand(clips, 3, 4, 16, 16), torch.rand(clips, 3, 4, joints, 2)


def copies(values):
    return {name: value.clone() for name, value in values}


def keep_latest_statistics(network):
    """Let batch normalisations forget all but the last batch: a few steps are too few for a running mean."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = 0.9
    return network


def demo_clip(action, take, frames=8, side=32, room=120):
    """Draw a clip as the demo does: frames (3, T, side, side) 0..1, true keypoints (3, T, 17, 1) 0..1."""
    states = [np.random.default_rng((action, take, part)) for part in range(4)]
    background = make_room((room, room), states[0])
    looks = (make_look(states[1]),)
    scene = make_scene(action, 2, looks, frames, background, states[2], states[3])
    images = [cv2.resize(render(scene, t), (side, side)) for t in range(frames)]
    keypoints = torch.from_numpy(scene_truth(scene)[1]) / room
    skeletons = torch.cat([keypoints, torch.ones_like(keypoints[..., :1])], -1)
    return torch.from_numpy(np.stack(images)).movedim(-1, 0) / 255, skeletons.permute(3, 1, 2, 0)


def learn(module, inputs, loss, rate, steps):
    optimizer = torch.optim.AdamW(module.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(module(*inputs)).backward()
        optimizer.step()


def right(logits, labels):
    return (logits.argmax(1) == labels).float().mean().item()


def test_the_numbers_of_parameters_are_the_documented_ones():
    with torch.device("meta"):
        network = AMFINet(60, "ntu25")
        assert count_parameters(network) == 40_198_436
        assert count_parameters(network.rgb_backbone) == 33_166_272
        assert count_parameters(network.skeleton_backbone) == 6_606_564
        assert count_parameters(network.fusion) == 425_600
        assert count_parameters(AMFINet(60, "ntu25", reduction=1)) == 42_165_476
        assert count_parameters(AMFINet(60)) == 40_188_308


def test_the_multiply_adds_are_the_documented_ones():
    with torch.device("meta"):
        network = AMFINet(60, "ntu25").eval()
        frames, skeletons = torch.empty(1, 3, 16, 112, 112), torch.empty(1, 3, 300, 25, 2)
        assert round(count_macs(network, frames, skeletons), 2) == 71.34
        assert round(count_macs(network.rgb_backbone, frames), 2) == 40.70
        assert round(count_macs(network.skeleton_backbone, skeletons), 2) == 30.64
        network.rgb_backbone.net.stem.append(nn.MaxPool3d(3, 2, 1))
        assert round(count_macs(network.rgb_backbone, frames), 2) == 6.42


@pytest.mark.parametrize(("graph", "joints"), [("coco17", 17), ("ntu25", 25)])
def test_both_graphs_give_logits_and_a_gate(graph, joints):
    logits, gate = models.AMFINet(5, graph)(*inputs(2, joints))
    assert logits.shape == (2, 5)
    assert gate.shape == (2, 512)


def test_frames_and_skeletons_need_not_be_equally_many():
    logits, _ = AMFINet(5)(torch.rand(2, 3, 4, 24, 16), torch.rand(2, 3, 9, 17, 1))
    assert logits.shape == (2, 5)


def test_the_fusion_is_the_papers_equations_position_by_position():
    fusion = wild(FusionHead(5, 16)).double()
    skeleton, rgb = torch.rand(2, 512).double(), torch.rand(2, 512).double()
    x = torch.cat([skeleton, rgb], 1)
    theta, beta, g, w_z = (
        getattr(fusion.association, name).weight.item() for name in ("theta", "beta", "g", "w_z")
    )
    f = (theta * x[:, :, None] * beta * x[:, None, :]).exp()
    z = w_z * (f * g * x[:, None, :]).sum(2) / f.sum(2) + x
    weights = torch.sigmoid(fusion.excitation(torch.relu(fusion.squeeze(z))))
    y_skeleton, y_rgb = weights[:, :512] * skeleton, weights[:, 512:] * rgb
    confidence = torch.sigmoid(fusion.gate(y_skeleton))
    expected = fusion.fc_cls(y_skeleton * confidence + y_rgb * (1 - confidence))
    logits, gate = fusion(skeleton, rgb)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(gate.sigmoid(), confidence)


def test_an_open_gate_takes_the_skeleton_and_a_shut_one_the_frames():
    fusion = wild(FusionHead(5, 16))
    skeleton, other_skeleton, rgb, other_rgb = torch.rand(4, 2, 512)
    nn.init.zeros_(fusion.gate.weight)
    nn.init.zeros_(fusion.excitation.weight)
    for bias, same in ((100.0, (skeleton, other_rgb)), (-100.0, (other_skeleton, rgb))):
        nn.init.constant_(fusion.gate.bias, bias)
        torch.testing.assert_close(fusion(*same)[0], fusion(skeleton, rgb)[0])


def test_the_loss_is_the_one_worked_out_by_hand():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    gate = torch.logit(torch.tensor([[0.5, 0.75], [0.9, 0.2]]))
    # -log(e^2 / (e^2 + 1)) = 0.126928 and log 2; -log of 0.5, 0.25, 0.1 and 0.8
    entropy, closed = (0.126928 + 0.693147) / 2, (0.693147 + 1.386294 + 2.302585 + 0.223144) / 4
    assert amfi_loss(logits, gate, labels).item() == pytest.approx(entropy + 1.5 * closed, abs=1e-5)
    assert amfi_loss(logits, gate, labels, 3.0).item() == pytest.approx(entropy + 3 * closed, abs=1e-5)
    assert amfi_loss(logits, gate, labels, 0.0).item() == pytest.approx(entropy, abs=1e-5)


@pytest.mark.parametrize("value", [-200.0, -1.0, 0.0, 1.0, 200.0])
def test_the_gate_is_pushed_down_and_never_overflows(value):
    gate = torch.full((2, 512), value, requires_grad=True)
    loss = amfi_loss(torch.zeros(2, 4), gate, torch.zeros(2, dtype=torch.int64))
    loss.backward()
    assert loss.isfinite()
    torch.testing.assert_close(gate.grad, gate.detach().sigmoid() * 1.5 / gate.numel())


def test_a_larger_gate_weight_closes_the_gate_further():
    def closed(gate_weight):
        torch.manual_seed(0)
        fusion = FusionHead(3, 16)
        optimizer = torch.optim.SGD(fusion.parameters(), 0.5)
        skeleton, rgb, labels = torch.rand(6, 512), torch.rand(6, 512), torch.arange(6) % 3
        for _ in range(5):
            optimizer.zero_grad()
            amfi_loss(*fusion(skeleton, rgb), labels, gate_weight).backward()
            optimizer.step()
        return fusion(skeleton, rgb)[1].sigmoid().mean().item()

    assert closed(5.0) < closed(1.5) < closed(0.0)


def test_gradients_reach_every_parameter():
    network = wild(AMFINet(5, dropout=0)).double()
    rgb, skeletons = (value.double() for value in inputs())
    amfi_loss(*network(rgb, skeletons), torch.tensor([1, 3])).backward()
    assert [name for name, value in network.named_parameters() if not value.grad.abs().max() > 1e-12] == []


def test_a_network_made_from_streams_has_their_vectors_and_owns_its_weights():
    rgb, skeleton = wild(ResNet3D18(5)), wild(AGCN(5, "ntu25", 0.25))
    network = AMFINet.from_streams(rgb, skeleton, reduction=8).eval()
    assert network.config == {"num_classes": 5, "graph": "ntu25", "dropout": 0.25, "reduction": 8}
    frames, skeletons = inputs(2, 25)
    assert torch.equal(rgb.eval().fc_cls(network.rgb_backbone(frames)), rgb(frames))
    assert torch.equal(skeleton.eval().fc_cls(network.skeleton_backbone(skeletons)), skeleton(skeletons))
    before = network.rgb_backbone(frames), network.skeleton_backbone(skeletons)
    for value in (*rgb.parameters(), *skeleton.parameters()):
        nn.init.zeros_(value)
    assert torch.equal(network.rgb_backbone(frames), before[0])
    assert torch.equal(network.skeleton_backbone(skeletons), before[1])


def test_streams_of_other_classes_are_refused():
    with torch.device("meta"), pytest.raises(HarcacheError, match="has 5 classes, the skeleton stream 6"):
        AMFINet.from_streams(ResNet3D18(5), AGCN(6))


def test_training_with_frozen_streams_changes_the_fusion_alone():
    network = AMFINet(5)
    network.freeze_streams()
    network.train()
    before = copies(network.state_dict().items())
    # Weight decay would move weights that have a gradient of zero.
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        amfi_loss(*network(*inputs()), torch.tensor([1, 3])).backward()
        optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("fusion.")}


def test_without_freezing_the_streams_change():
    network = AMFINet(5)
    before = copies(network.named_buffers())
    network(*inputs())
    assert not any(
        torch.equal(value, before[name]) for name, value in network.named_buffers() if "running" in name
    )


def test_frozen_streams_stay_in_evaluation_mode_and_the_fusion_follows():
    network = AMFINet(5)
    network.freeze_streams()
    for mode in (True, False, True):
        nn.Sequential(network).train(mode)
        assert network.training is network.fusion.training is mode
        streams = (*network.rgb_backbone.modules(), *network.skeleton_backbone.modules())
        assert not any(module.training for module in streams)
    frames = inputs()
    assert torch.equal(network(*frames)[0], network(*frames)[0]), "dropout is on"


def test_a_saved_network_comes_back_whole(tmp_path):
    network = AMFINet(5, "ntu25", 0.25, 8)
    save_checkpoint(tmp_path / "net.pt", network, ["a", "b", "c", "d", "e"])
    again, checkpoint = load_network(tmp_path / "net.pt")
    assert type(again) is AMFINet
    assert checkpoint.config == network.config == again.config
    frames = inputs(2, 25)
    assert torch.equal(again.eval()(*frames)[0], network.eval()(*frames)[0])


def test_a_saved_rgb_stream_comes_back_whole(tmp_path):
    network = ResNet3D18(5)
    save_checkpoint(tmp_path / "net.pt", network)
    again, _ = load_network(tmp_path / "net.pt")
    assert torch.equal(again.eval()(frames := inputs()[0]), network.eval()(frames))


@pytest.mark.parametrize("shape", [(2, 4, 3, 16, 16), (3, 4, 16, 16), (2, 3, 0, 16, 16)])
def test_frames_of_another_shape_are_refused(shape):
    with (
        torch.device("meta"),
        pytest.raises(HarcacheError, match=r"expected \(clips, 3, frames, height") as error,
    ):
        AMFINet(5)(torch.empty(shape), torch.empty(2, 3, 4, 17, 1))
    assert str(shape) in str(error.value)


def test_skeletons_of_another_graph_are_refused():
    with torch.device("meta"), pytest.raises(HarcacheError, match=r"the skeletons are \(2, 3, 4, 17, 2\)"):
        AMFINet(5, "ntu25")(*inputs(2, 17))


def test_other_clips_of_skeletons_than_of_frames_are_refused():
    with torch.device("meta"), pytest.raises(HarcacheError, match="frames of 3 clips and skeletons of 2"):
        AMFINet(5)(inputs(3)[0], inputs(2)[1])


def test_a_graph_that_does_not_exist_is_refused():
    with pytest.raises(HarcacheError, match=r"there is no graph 'ntu'. Did you mean 'ntu25'"):
        AMFINet(5, "ntu")


def test_bfloat16_moves_vectors_and_gate_by_under_a_twentieth_and_logits_by_under_a_tenth():
    network = keep_latest_statistics(AMFINet(5, dropout=0))
    for name, value in network.named_parameters():
        if name.endswith(("spatial.bn.weight", "w_z.weight")):
            nn.init.ones_(value)
    rgb, skeletons = torch.rand(4, 3, 8, 32, 32), torch.rand(4, 3, 8, 17, 2)

    def results():
        vectors = network.skeleton_backbone(skeletons), network.rgb_backbone(rgb)
        return *vectors, *network.fusion(*vectors)

    with torch.no_grad():
        network(rgb, skeletons)
        network.eval()
        expected = results()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = results()
            assert amfi_loss(*rounded[2:], torch.arange(4)).dtype == torch.float32
    skeleton, frames, logits, gate = (
        ((value - exact).norm() / exact.norm()).item() for value, exact in zip(rounded, expected, strict=True)
    )
    assert 0 < max(skeleton, frames, gate) < 0.05
    assert 0 < logits < 0.1


@pytest.mark.slow  # It trains two networks of full width, if on few small frames.
def test_trained_in_the_papers_steps_it_knows_sixteen_clips_by_heart():
    actions = (1, 2, 3, 4, 5, 6, 9, 10)
    clips = [demo_clip(action, take) for action in actions for take in range(2)]
    frames, skeletons = (torch.stack(values) for values in zip(*clips, strict=True))
    labels = torch.arange(8).repeat_interleave(2)
    rgb, skeleton = keep_latest_statistics(ResNet3D18(8)), keep_latest_statistics(AGCN(8, dropout=0))
    learn(rgb, (frames,), lambda logits: functional.cross_entropy(logits, labels), 3e-4, 9)
    learn(skeleton, (skeletons,), lambda logits: functional.cross_entropy(logits, labels), 2e-3, 14)
    network = AMFINet.from_streams(rgb, skeleton)
    network.freeze_streams()
    with torch.no_grad():
        assert right(rgb.eval()(frames), labels) == 1
        assert right(skeleton.eval()(skeletons), labels) == 1
        vectors = network.skeleton_backbone(skeletons), network.rgb_backbone(frames)
        assert right(network.eval()(frames, skeletons)[0], labels) < 1
    learn(network.fusion, vectors, lambda outputs: amfi_loss(*outputs, labels), 1e-2, 10)
    with torch.no_grad():
        logits, gate = network(frames, skeletons)
        assert right(logits, labels) == 1
        assert gate.sigmoid().mean() < 0.5
        with torch.autocast("cpu", torch.bfloat16):
            assert right(network(frames, skeletons)[0], labels) == 1

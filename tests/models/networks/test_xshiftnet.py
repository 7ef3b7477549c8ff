"""Promises of models.xshiftnet: the paper's sizes, a shift that costs one copy, no memory layout lost."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from harcache.models.networks.xshiftnet import PoseXShiftNet, RGBXShiftNet, shift_frames
from harcache.pipeline.base.errors import HarcacheError

X3D = {"shift": 0, "temporal_kernel": 3}


def count_parameters(network):
    return sum(value.numel() for value in network.parameters())


def giga_multiply_adds(network, *shapes):
    network = network.to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        network(*[torch.empty(shape, device="meta") for shape in shapes])
    return round(counter.get_total_flops() / 2e9, 3)


def test_the_streams_have_the_released_numbers_of_parameters():
    assert count_parameters(RGBXShiftNet(60)) == 2_006_010
    assert count_parameters(PoseXShiftNet(60)) == 532_600


def test_x3d_has_the_numbers_of_parameters_of_the_comparison():
    assert count_parameters(RGBXShiftNet(60, hidden=2048, **X3D)) == 3_097_662
    assert count_parameters(PoseXShiftNet(60, **X3D)) == 586_180


def test_the_streams_cost_what_the_released_ones_do():
    assert giga_multiply_adds(RGBXShiftNet(60), (1, 3, 16, 224, 224)) == 4.262
    assert giga_multiply_adds(PoseXShiftNet(60), (1, 17, 48, 56, 56)) == 3.356


def test_x3d_costs_what_the_comparison_says():
    rgb, pose = RGBXShiftNet(60, hidden=2048, **X3D), PoseXShiftNet(60, **X3D)
    assert giga_multiply_adds(rgb.backbone, (1, 3, 16, 224, 224)) == 4.731
    assert giga_multiply_adds(pose.backbone, (1, 17, 48, 56, 56)) == 3.822


@given(
    shape=st.tuples(
        st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)
    ),
    data=st.data(),
)
def test_each_value_moves_one_frame_or_stays(shape, data):
    folded = data.draw(st.integers(0, shape[2] // 2))
    x = torch.rand(shape) + 1
    moved = shift_frames(x, folded)
    for t in range(shape[1]):
        later = x[:, t + 1, :folded] if t + 1 < shape[1] else 0
        earlier = x[:, t - 1, folded : 2 * folded] if t else 0
        assert (moved[:, t, :folded] == later).all()
        assert (moved[:, t, folded : 2 * folded] == earlier).all()
        assert (moved[:, t, 2 * folded :] == x[:, t, 2 * folded :]).all()


def test_the_gradient_of_a_shift_is_right():
    x = torch.rand(2, 3, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: shift_frames(x, 2), x)


class Copied(TorchDispatchMode):
    """Counts the values that are written by copies and fills."""

    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.__name__.startswith(("copy_", "clone", "fill_", "zero", "cat", "_to_copy")):
            self.values += result.numel()
        return result


def test_a_shift_copies_each_value_once_forward_and_back():
    x = torch.rand(2, 8, 6, 6, 16).permute(0, 1, 4, 2, 3).requires_grad_()
    with Copied() as copied:
        moved = shift_frames(x, 4)
    assert copied.values == x.numel()
    assert moved.stride() == x.stride()
    with Copied() as copied:
        torch.autograd.grad(moved, x, torch.ones_like(moved))
    assert copied.values == x.numel()


def is_map(x):
    """Tell frames from weights and from vectors, whose layouts cost nothing."""
    return x.ndim == 4 and x.shape[0] == 8 and x.shape[2] > 1


class Layouts(TorchDispatchMode):
    """Collects the convolutions whose large operands or results are not channels-last."""

    def __init__(self):
        super().__init__()
        self.bad, self.convolutions = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.__name__.startswith(("convolution", "native_batch_norm")):
            self.convolutions += 1
            frames = [x for x in (*args[:2], result) if isinstance(x, torch.Tensor) and is_map(x)]
            if not all(x.is_contiguous(memory_format=torch.channels_last) for x in frames):
                self.bad.append((function.__name__, [x.shape for x in frames]))
        return result


def test_convolutions_and_norms_see_channels_last_forward_and_back():
    network = RGBXShiftNet(3, width=16, blocks=(1, 2))
    with Layouts() as layouts:
        network(torch.rand(2, 3, 4, 32, 32)).sum().backward()
    assert layouts.convolutions > 30
    assert not layouts.bad


def test_frames_that_are_channels_last_already_are_not_copied():
    network = RGBXShiftNet(3, width=16, blocks=(1,), shift=0).eval()
    rgb = torch.rand(1, 4, 32, 32, 3).permute(0, 4, 1, 2, 3)
    with Copied() as copied, torch.no_grad():
        network(rgb)
    assert copied.values == 0


@pytest.mark.parametrize("width", [8, 12, 16])
def test_narrow_networks_train(width):
    network = PoseXShiftNet(4, width=width, blocks=(1, 2))
    network(torch.rand(2, 17, 5, 15, 17)).logsumexp(1).sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in network.parameters())


@pytest.mark.parametrize("options", [{}, X3D])
def test_any_size_and_number_of_frames_work(options):
    network = RGBXShiftNet(5, width=8, blocks=(1, 1, 1), **options).eval()
    for frames, height, width in [(1, 32, 32), (7, 33, 50), (16, 112, 64)]:
        assert network(torch.rand(2, 3, frames, height, width)).shape == (2, 5)


def test_frames_influence_their_neighbours_and_clips_do_not():
    network = PoseXShiftNet(5, width=8, blocks=(1,)).eval()
    block = network.backbone.layer1[0]
    torch.nn.init.ones_(block.conv3.bn.weight)
    # It pools over all frames of a clip.
    block.se_module = None
    clips = torch.rand(2, 17, 6, 8, 8)
    changed = clips.clone()
    changed[0, :, 3] += 1
    before, after = network.backbone(clips), network.backbone(changed)
    differs = (before != after).any(1).flatten(2).any(2)
    assert differs.tolist() == [[False, False, True, True, True, False], [False] * 6]


def test_every_block_starts_as_its_identity():
    backbone = RGBXShiftNet(5, width=16, blocks=(2, 2)).backbone.eval()
    x = torch.rand(1, 2, 16, 8, 8)
    torch.testing.assert_close(backbone.layer1[1](x), x)


def test_the_config_makes_the_same_network_again():
    for network in (
        RGBXShiftNet(5, width=8, blocks=(1, 1), hidden=32),
        PoseXShiftNet(5, in_channels=4, shift=0.25),
    ):
        again = type(network)(**network.config)
        assert again.config == network.config
        again.load_state_dict(network.state_dict())


@pytest.mark.parametrize("shape", [(2, 17, 4, 32, 32), (3, 4, 32, 32)])
def test_an_input_of_another_shape_is_refused(shape):
    with pytest.raises(HarcacheError, match=r"expected \(clips, 3, frames, height, width\)"):
        RGBXShiftNet(5, width=8, blocks=(1,))(torch.rand(shape))

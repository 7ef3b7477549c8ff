"""Promises of models.export: other programs compute the same, for any number of clips."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from harcache.models.checkpoints import Checkpoint, save_checkpoint
from harcache.models.export import _trained_sizes, export_checkpoint
from harcache.models.networks.amfi_net import AMFINet
from harcache.models.networks.epam_net import EPAMNet
from harcache.models.networks.xshiftnet import RGBXShiftNet
from harcache.models.summary import input_shapes
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import (
    AmfiModelParams,
    AmfiParams,
    AmfiSampleParams,
    FusionRecipeParams,
    RecipeParams,
    to_mapping,
)
from tests.models.wild_weights import wild
from tests.tiny_demo import PARAMS

SIZES = {"rgb": (4, 32, 32), "heatmaps": (8, 8, 8), "skeletons": (8, 17, 2)}
TAKEN = {"epam": ["rgb", "heatmaps"], "rgb": ["rgb"], "amfi": ["rgb", "skeletons"]}


def make(kind):
    if kind == "epam":
        return wild(EPAMNet(5, width=8, rgb_blocks=(1, 1), pose_blocks=(1,)))
    if kind == "rgb":
        return wild(RGBXShiftNet(5, width=8, blocks=(2,)))
    # Wild weights would drive the association's softmax to where float32 itself keeps but four digits.
    network = AMFINet(5)
    torch.nn.init.ones_(network.fusion.association.w_z.weight)
    return network


@pytest.fixture
def saved(tmp_path):
    """Save a network of a kind; return it in evaluation mode and the path of its checkpoint."""

    def save(kind):
        network = make(kind)
        save_checkpoint(tmp_path / "net.pt", network)
        return network.eval(), tmp_path / "net.pt"

    return save


def sizes_of(kind):
    return {name: SIZES[name] for name in TAKEN[kind]}


def answers(network, inputs):
    with torch.no_grad():
        result = network(*inputs.values())
    return result if isinstance(result, tuple) else (result,)


# Slow: the conversion walks the whole graph in Python.
@pytest.mark.slow
@pytest.mark.parametrize("kind", TAKEN)
def test_onnx_runtime_agrees_for_any_number_of_clips(kind, saved, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    network, checkpoint = saved(kind)
    shapes = export_checkpoint(checkpoint, tmp_path / "net.onnx", sizes_of(kind))
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert [value.name for value in session.get_inputs()] == list(shapes)
    for clips in (1, 2, 5):
        inputs = {name: torch.rand(clips, *shape) for name, shape in shapes.items()}
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for result, wanted in zip(found, answers(network, inputs), strict=True):
            np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("kind", TAKEN)
def test_an_exported_program_agrees_for_any_number_of_clips(kind, saved, tmp_path):
    network, checkpoint = saved(kind)
    shapes = export_checkpoint(checkpoint, tmp_path / "net.pt2", sizes_of(kind))
    program = torch.export.load(tmp_path / "net.pt2").module()
    for clips in (1, 2, 5):
        inputs = {name: torch.rand(clips, *shape) for name, shape in shapes.items()}
        for result, wanted in zip(answers(program, inputs), answers(network, inputs), strict=True):
            torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_sizes_are_those_of_training_where_the_checkpoint_tells_them(tmp_path):
    network = RGBXShiftNet(5, width=8, blocks=(2,))
    save_checkpoint(tmp_path / "net.pt", network, extra={"dataset": to_mapping(PARAMS)})
    assert export_checkpoint(tmp_path / "net.pt", tmp_path / "net.pt2") == {"rgb": (3, 4, 64, 64)}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("epam_net", {"rgb": (4, 64, 64), "heatmaps": (8, 32, 32)}),
        ("amfi_net", {"rgb": (2, 48, 48), "skeletons": (6, 17, 2)}),
    ],
)
def test_each_network_has_the_sizes_of_its_own_samples(name, sizes):
    recipe = RecipeParams(1, 4, 0.1, "float32")
    fusion = FusionRecipeParams(1, 4, 0.1, "float32")
    amfi = AmfiParams("xsub", 0, recipe, recipe, fusion, AmfiSampleParams(6, 2, 48), AmfiModelParams())
    extra = {"dataset": to_mapping(replace(PARAMS, amfi=amfi))}
    shapes = input_shapes(make("epam" if name == "epam_net" else "amfi"))
    assert _trained_sizes(shapes, Checkpoint(name, {}, (), {}, extra)) == sizes


def test_exporting_leaves_one_file(saved, tmp_path):
    _, checkpoint = saved("rgb")
    export_checkpoint(checkpoint, tmp_path / "out" / "net.pt2", sizes_of("rgb"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["net.pt2"]


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(HarcacheError, match=r"net.trt ends with '.trt'; expected one of .pt2, .onnx"):
        export_checkpoint(tmp_path / "net.pt", tmp_path / "net.trt")


def test_an_unknown_input_is_refused_with_the_nearest_name(saved, tmp_path):
    _, checkpoint = saved("epam")
    with pytest.raises(HarcacheError, match=r"no input 'heatmap'. Did you mean 'heatmaps'"):
        export_checkpoint(checkpoint, tmp_path / "net.onnx", {"heatmap": (8, 8, 8)})


def test_sizes_that_do_not_meet_are_refused(saved, tmp_path):
    _, checkpoint = saved("epam")
    with pytest.raises(HarcacheError, match="the RGB features are 8x8 and the pose features 4x4"):
        export_checkpoint(checkpoint, tmp_path / "net.pt2", sizes_of("epam") | {"rgb": (4, 64, 64)})
    assert not (tmp_path / "net.pt2").exists()


def test_a_missing_package_is_answered_with_the_extra_that_brings_it(saved, tmp_path, monkeypatch):
    _, checkpoint = saved("rgb")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        HarcacheError, match=r"onnxscript is not installed; run: pip install 'harcache\[export\]'"
    ):
        export_checkpoint(checkpoint, tmp_path / "net.onnx", sizes_of("rgb"))

"""Keypoints are those that mmpose finds, person by person, whatever shares the batch."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from harcache.models.estimators.registry import load_pose_estimator
from harcache.models.pretrained import mmpose_stand_ins
from harcache.models.pretrained.weight_files import find_config, find_weights
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.datasets.demo import DemoSpec, generate_demo
from harcache.pipeline.datasets.truth import read_truth
from harcache.pipeline.params import PoseParams
from harcache.pipeline.video.frames import read_frames
from tests.models.extraction import estimate, make_frames
from tests.projects import ROOT

mmpose_stand_ins.install()
DEMO = PoseParams(
    backend="mmpose",
    config="demo-hrnet",
    weights="net.pth",
    flip_test=True,
    max_persons=2,
    precision="float32",
)
BOXES = np.array([[20, 10, 90, 110], [60.5, 5.25, 150, 118.5], [-5, 40, 30, 100]], np.float32)


def make_model(config):
    """mmpose's own model with random weights whose heatmaps have clear maxima."""
    from mmpose.apis import init_model
    from mmpose.models.heads import HeatmapHead

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mmpose looks for COCO's description first beside the caller
        model = init_model(str(find_config(config)), None, "cpu")
    if isinstance(model.head, HeatmapHead):
        torch.nn.init.normal_(model.head.final_layer.weight, std=0.3)
        torch.nn.init.constant_(model.head.final_layer.bias, 0.1)
    return model


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """mmpose's model, and the folder that holds its weights."""
    model = make_model("demo-hrnet")
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"state_dict": model.state_dict(), "meta": {}}, folder / "net.pth")
    return model, folder


def assert_equal_to_mmpose(model, params, folder, frames, boxes, alike=1.0):
    """Of the keypoints, the share ``alike`` lies within 0.001 pixel, and every score within 0.00001."""
    from mmpose.apis import inference_topdown

    model.test_cfg["flip_test"] = params.flip_test
    found = estimate(load_pose_estimator(params, folder), frames, boxes)
    pairs = list(zip(frames, boxes, strict=True))
    expected = [inference_topdown(model, frame[..., ::-1], persons) for frame, persons in pairs]
    persons = [sample.pred_instances for samples in expected for sample in samples]
    keypoints = np.concatenate(found)
    distance = np.abs(keypoints[..., :2] - [person.keypoints[0] for person in persons]).max(axis=-1)
    assert np.quantile(distance, alike) < 1e-3
    assert distance.max() < 0.1
    # With random weights SimCC's scores reach 7, where processors that sum in another order differ by 2e-5.
    scores = [p.keypoint_scores[0] for p in persons]
    np.testing.assert_allclose(keypoints[..., 2], scores, rtol=5e-6, atol=1e-5)


@pytest.mark.parametrize("flip_test", [True, False])
def test_keypoints_of_the_small_network_are_those_that_mmpose_finds(demo, flip_test):
    model, folder = demo
    params = replace(DEMO, flip_test=flip_test)
    # The codec looks for the top of a parabola, and random weights give a few maxima so flat that the last
    # bit of a float is a distance; where the network was trained, there are none (see below).
    assert_equal_to_mmpose(model, params, folder, make_frames(3), [BOXES, BOXES[:1], BOXES[1:]], alike=0.95)


def test_every_keypoint_of_the_trained_small_network_is_the_one_that_mmpose_finds(tmp_path):
    from mmpose.apis import init_model

    generate_demo(tmp_path, DemoSpec(performers=(2,), cameras=1, actions=(11,)), workers=1)
    ((clip, truth),) = read_truth(tmp_path).items()
    looked_at = list(range(0, truth.boxes.shape[1], 8))
    filmed = list(read_frames(tmp_path / f"{clip}_rgb.mp4", 0, truth.boxes.shape[1]))
    boxes = [truth.boxes[:, number] for number in looked_at]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = init_model(str(find_config("demo-hrnet")), str(find_weights("demo-hrnet")), "cpu")
    assert_equal_to_mmpose(
        model, replace(DEMO, weights="demo-hrnet"), None, [filmed[number] for number in looked_at], boxes
    )


def test_crops_are_mmpose_s_to_the_bit_and_heatmaps_to_a_float_s_last_ones(demo):
    from mmengine.dataset import Compose
    from mmpose.apis import inference_topdown

    model, folder = demo
    model.test_cfg.update(flip_test=True, output_heatmaps=True)
    (frame,) = make_frames(1)
    cut = Compose(model.cfg.test_dataloader.dataset.pipeline)
    expected = [
        cut({"img": frame[..., ::-1], "bbox": box[None], "bbox_score": np.ones(1), **model.dataset_meta})
        for box in BOXES
    ]
    estimator = load_pose_estimator(DEMO, folder)
    images = estimator.prepare(frame, BOXES)
    crops = estimator.memory(images[0].shape)
    for image, crop in zip(images, crops, strict=False):
        image.draw(crop)
    for crop, theirs in zip(crops, expected, strict=False):
        np.testing.assert_array_equal(crop, theirs["inputs"].numpy()[::-1].transpose(1, 2, 0))
    with torch.inference_mode():
        heatmaps = estimator._heatmaps(torch.from_numpy(crops))[: len(BOXES)].numpy()
    theirs = [
        found.pred_fields.heatmaps.numpy() for found in inference_topdown(model, frame[..., ::-1], BOXES)
    ]
    model.test_cfg.output_heatmaps = False
    np.testing.assert_allclose(heatmaps, theirs, rtol=0, atol=5e-6 * np.abs(theirs).max())


def test_keypoints_of_hrnet_w32_are_those_that_mmpose_finds(tmp_path):
    config = "td-hm_hrnet-w32_8xb64-210e_coco-256x192"
    model = make_model(config)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    assert_equal_to_mmpose(model, replace(DEMO, config=config), tmp_path, make_frames(1), [BOXES])


def test_keypoints_in_filmed_frames_are_those_that_mmpose_finds(tmp_path):
    path = ROOT.parent / "shared" / "videos" / "S001C001P001R001A001_rgb.avi"
    if not path.is_file():
        pytest.skip(f"the sample videos are not here: {path} is missing")
    config = "td-hm_hrnet-w32_8xb64-210e_coco-256x192"
    model = make_model(config)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    persons = np.array([[800, 250, 1150, 1000], [900.5, 300.25, 1000, 700]], np.float32)
    frames = list(read_frames(path, 0, 3))[::2]
    assert_equal_to_mmpose(model, replace(DEMO, config=config), tmp_path, frames, [persons, persons[:1]])


@pytest.mark.parametrize(
    "config",
    ["rtmpose-t_8xb256-420e_coco-256x192", "td-reg_mobilenetv2_rle-pretrained-8xb64-210e_coco-256x192"],
)
def test_keypoints_of_other_top_down_networks_are_those_that_mmpose_finds(tmp_path, config):
    model = make_model(config)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    path = str(find_config(config))
    assert_equal_to_mmpose(model, replace(DEMO, config=path), tmp_path, make_frames(1), [BOXES])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_persons_keypoints_do_not_depend_on_who_shares_the_batch(demo, precision):
    estimator = load_pose_estimator(replace(DEMO, precision=precision), demo[1])
    frames = make_frames(5)
    boxes = [BOXES, BOXES[:0], BOXES[:2], BOXES, BOXES[1:]]
    together = estimate(estimator, frames, boxes)
    for frame, persons, keypoints in zip(frames, boxes, together, strict=True):
        for box, points in zip(persons, keypoints, strict=True):
            np.testing.assert_array_equal(estimate(estimator, [frame], [box[None]])[0][0], points)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_what_a_cpu_finds_whatever_shares_the_batch(demo):
    frames, boxes = make_frames(3), [BOXES, BOXES[:1], BOXES[1:]]
    on_cpu, on_gpu = (load_pose_estimator(DEMO, demo[1], device) for device in ("cpu", "cuda"))
    for expected, found in zip(*(estimate(one, frames, boxes) for one in (on_cpu, on_gpu)), strict=True):
        np.testing.assert_allclose(found[..., 2], expected[..., 2], atol=1e-3)
        assert np.median(np.abs(found - expected)[..., :2]) < 0.01
    for frame, persons, found in zip(frames, boxes, estimate(on_gpu, frames, boxes), strict=True):
        np.testing.assert_array_equal(estimate(on_gpu, [frame], [persons])[0], found)


def test_scores_in_bfloat16_are_near_those_in_float32(demo):
    frames, boxes = make_frames(1), [BOXES]
    exact, rounded = (
        estimate(load_pose_estimator(replace(DEMO, precision=precision), demo[1]), frames, boxes)[0]
        for precision in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(rounded[..., 2], exact[..., 2], atol=0.05)
    assert not np.array_equal(rounded, exact)


def test_a_frame_without_persons_has_no_keypoints(demo):
    estimator = load_pose_estimator(DEMO, demo[1])
    assert [found.shape for found in estimate(estimator, make_frames(2), [BOXES[:0], BOXES])] == [
        (0, 17, 3),
        (3, 17, 3),
    ]
    assert estimate(estimator, [], []) == []


@pytest.mark.parametrize("box", [[10, 10, 10, 50], [10, 50, 40, 20], [0, 0, float("nan"), 9]])
def test_an_empty_box_is_an_error(demo, box):
    with pytest.raises(HarcacheError, match=r"the box .* is empty or not finite"):
        estimate(load_pose_estimator(DEMO, demo[1]), make_frames(2), [BOXES, np.array([box])])


def test_weights_of_another_network_are_an_error(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "net.pth")
    with pytest.raises(HarcacheError, match="these weights don't fit the pose config"):
        load_pose_estimator(DEMO, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('type="CocoDataset"', 'type="CrowdPoseDataset"'), "HeatmapHead trained on CrowdPoseDataset"),
        (('type="LoadImage"', 'type="LoadImageFromMemory"'), "its test pipeline is LoadImageFromMemory"),
        (("out_channels=17", "out_channels=14"), "finds 14 keypoints; expected COCO's 17"),
        (("decoder=codec", "decoding=codec"), "not a top-down config of mmpose"),
    ],
)
def test_a_config_for_something_else_is_an_error(demo, tmp_path, change, message):
    config = tmp_path / "config.py"
    config.write_text(find_config("demo-hrnet").read_text().replace(*change))
    with pytest.raises(HarcacheError, match=message):
        load_pose_estimator(replace(DEMO, config=str(config)), demo[1])

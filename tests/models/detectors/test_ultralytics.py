"""Ultralytics' detectors find what the library finds, whatever shares the batch, and trust no file's code."""

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from harcache.models.detectors.registry import load_detector
from harcache.models.pretrained import ultralytics_files
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import DetectParams
from tests.models.extraction import detect, make_frames

if find_spec("ultralytics") is None:
    pytest.skip("the optional package ultralytics is not installed", allow_module_level=True)
PARAMS = DetectParams(
    backend="ultralytics",
    weights="net.pt",
    image_size=128,
    score=0.3,
    nms_iou=0.5,
    max_persons=4,
    precision="float32",
)
DESCRIPTION = Path(ultralytics_files.__file__).parents[1] / "weights" / "demo-yolo.yaml"


def make_yolo(classes=1, seed=0):
    """The demo's network with random weights whose scores spread over 0 to 1."""
    ultralytics_files.prepare_ultralytics()
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(seed)
    model = DetectionModel({**yaml.safe_load(DESCRIPTION.read_text()), "nc": classes}, verbose=False)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 1.0, 2.0)
    for branch in model.model[-1].cv3:
        torch.nn.init.normal_(branch[-1].weight, std=1.0)
        torch.nn.init.zeros_(branch[-1].bias)
    for branch in model.model[-1].cv2:
        torch.nn.init.normal_(branch[-1].weight, std=0.5)
    return model.half().float().eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    ultralytics_files.save_yolo(make_yolo(), {0: "person"}, folder / "net.pt")
    return folder


def test_boxes_are_those_that_ultralytics_finds(weights):
    from ultralytics import YOLO

    theirs = YOLO(str(DESCRIPTION), task="detect", verbose=False)
    theirs.model = make_yolo()
    detector = load_detector(PARAMS, weights)
    frames = make_frames(3)
    assert sum(len(boxes) for boxes in detect(detector, frames)) > 0
    for frame, boxes in zip(frames, detect(detector, frames), strict=True):
        found = theirs.predict(
            frame[..., ::-1], imgsz=128, conf=0.3, iou=0.5, max_det=4, device="cpu", verbose=False, save=False
        )[0].boxes
        expected = torch.cat([found.xyxy, found.conf[:, None]], dim=1).numpy()
        np.testing.assert_allclose(boxes, expected, atol=2e-2)


def test_boxes_lie_in_the_frame_best_first_and_at_most_max_persons(weights):
    for boxes in detect(load_detector(replace(PARAMS, score=0.0), weights), make_frames(5)):
        assert boxes.dtype == np.float32
        assert boxes.shape == (4, 5)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] < boxes[:, 2:4]).all()
        assert (boxes[:, 2:4] <= (160, 120)).all()
        assert (np.diff(boxes[:, 4]) <= 0).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_frames_boxes_do_not_depend_on_what_shares_its_batch(weights, precision):
    detector = load_detector(replace(PARAMS, precision=precision), weights)
    frames = make_frames(11)
    together = detect(detector, frames)
    for frame, boxes in zip(frames, together, strict=True):
        np.testing.assert_array_equal(detect(detector, [frame])[0], boxes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_what_a_cpu_finds_in_frames_of_several_sizes(weights):
    frames = [*make_frames(3), *make_frames(3, height=200, width=90), *make_frames(2)]
    on_cpu, on_gpu = (load_detector(PARAMS, weights, device) for device in ("cpu", "cuda"))
    for expected, found in zip(*(detect(one, frames) for one in (on_cpu, on_gpu)), strict=True):
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_frames_of_several_sizes_keep_their_order(weights):
    detector = load_detector(PARAMS, weights)
    frames = [*make_frames(2), *make_frames(2, height=200, width=90), *make_frames(1)]
    for frame, boxes in zip(frames, detect(detector, frames), strict=True):
        np.testing.assert_array_equal(detect(detector, [frame])[0], boxes)


def test_no_frames_give_no_boxes(weights):
    assert detect(load_detector(PARAMS, weights), []) == []


def test_only_the_class_person_counts(tmp_path):
    model = make_yolo(classes=3)
    for branch in model.model[-1].cv3:
        branch[-1].weight.data[2] = 0
        branch[-1].bias.data[2] = -20
    ultralytics_files.save_yolo(model, {0: "cat", 1: "person", 2: "dog"}, tmp_path / "net.pt")
    assert any(map(len, detect(load_detector(PARAMS, tmp_path), make_frames(3))))
    ultralytics_files.save_yolo(model, {0: "cat", 1: "dog", 2: "person"}, tmp_path / "net.pt")
    assert not any(map(len, detect(load_detector(PARAMS, tmp_path), make_frames(3))))


def test_weights_without_the_class_person_are_an_error(tmp_path):
    ultralytics_files.save_yolo(make_yolo(classes=2), {0: "cat", 1: "dog"}, tmp_path / "net.pt")
    with pytest.raises(HarcacheError, match="no class 'person', only cat, dog"):
        load_detector(PARAMS, tmp_path)


def test_ultralytics_own_checkpoints_give_the_same_boxes(weights, tmp_path):
    model = make_yolo()
    model.names = {0: "person"}
    torch.save({"model": model.half(), "train_args": {"imgsz": 640}}, tmp_path / "net.pt")
    frames = make_frames(2)
    ours, theirs = (detect(load_detector(PARAMS, folder), frames) for folder in (weights, tmp_path))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


class _Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    torch.save({"model": _Hostile(tmp_path / "ran")}, tmp_path / "net.pt")
    with pytest.raises(HarcacheError, match="not a checkpoint that Ultralytics can load safely"):
        load_detector(PARAMS, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_description_may_name_layers_only(tmp_path):
    model = make_yolo()
    model.yaml["backbone"][0][2] = "load_checkpoint"
    ultralytics_files.save_yolo(model, {0: "person"}, tmp_path / "net.pt")
    with pytest.raises(HarcacheError, match="its description names load_checkpoint, expected only C2f"):
        load_detector(PARAMS, tmp_path)


def test_a_truncated_checkpoint_is_an_error(weights, tmp_path):
    (tmp_path / "net.pt").write_bytes((weights / "net.pt").read_bytes()[:100_000])
    with pytest.raises(HarcacheError, match=r"net\.pt: not a checkpoint"):
        load_detector(PARAMS, tmp_path)


def test_output_that_is_not_finite_is_an_error_not_an_empty_frame(tmp_path):
    model = make_yolo()
    model.model[0].conv.weight.data[0] = float("inf")
    ultralytics_files.save_yolo(model, {0: "person"}, tmp_path / "net.pt")
    with pytest.raises(HarcacheError, match="the output in float32 is not finite"):
        detect(load_detector(PARAMS, tmp_path), make_frames(1))


@pytest.mark.slow  # a fresh process imports torch, Ultralytics and mmpose
def test_no_network_is_asked_nothing_installed_and_nothing_left_in_the_home_folder(
    weights, tmp_path, tmp_path_factory
):
    elsewhere = str(tmp_path_factory.mktemp("elsewhere"))
    environment = {key: value for key, value in os.environ.items() if key != "YOLO_CONFIG_DIR"}
    script = f"""
import sys
seen = []
asked = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request")
def look(event, what):
    if event in asked or (event == "subprocess.Popen" and "pip" in what[1]):
        seen.append((event, what))
sys.addaudithook(look)
from pathlib import Path
import numpy as np
from harcache.models.pretrained.batching import extract
from harcache.models.detectors.registry import load_detector
from harcache.models.estimators.registry import load_pose_estimator
from harcache.pipeline.params import DetectParams, PoseParams
pose = PoseParams("mmpose", "demo-hrnet", "demo-hrnet", False, 2, "float32")
frame, boxes = np.zeros((120, 160, 3), np.uint8), np.array([[10, 10, 90, 110, 1.0]])
def check(network):
    found = extract(network, {{"clip": [(frame, boxes)]}}, 1)
    assert len(found["clip"]) == 1, found
check(load_detector({PARAMS!r}, Path({str(weights)!r})))
# What mmpose's models import keeps caches of its own, such as Matplotlib's list of fonts.
import os
os.environ.update(HOME={elsewhere!r}, TMPDIR={elsewhere!r}, TORCHINDUCTOR_CACHE_DIR={elsewhere!r})
check(load_pose_estimator(pose))
assert not seen, seen
assert not {{"torchvision", "torch._dynamo", "sympy"}} & set(sys.modules)  # each takes longer than all else
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CONFIG_HOME": ""},
        cwd=Path(ultralytics_files.__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    left = [str(path) for path in tmp_path.rglob("*")]
    assert left == []

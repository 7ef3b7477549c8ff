"""Prediction on raw videos is what evaluation says from the caches, for any length and whatever fails."""

import json
import os
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from harcache.cli import main
from harcache.commands.predict import Options, Predictor, cut, videos_of
from harcache.commands.prediction import samples
from harcache.commands.prediction.overlay import OVERLAYS, Shown, _draw, write_overlay
from harcache.commands.prediction.poses import SpanPoses
from harcache.commands.prediction.samples import SampledSpan, read_samples
from harcache.models.checkpoints import load_network, save_checkpoint
from harcache.models.pretrained.weight_files import is_looked_up
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.progress import progress
from harcache.pipeline.clips import read_manifest
from harcache.pipeline.params import DatasetParams, EvaluateParams, SampleParams
from harcache.pipeline.video.frames import probe, read_frames
from harcache.pipeline.video.writing import write_video
from harcache.pipeline.work.engine import Engine
from harcache.stages import evaluate
from harcache.stages.scoring.accuracy import softmax
from harcache.stages.shared.workspace import Workspace
from harcache.stages.training.inputs import inputs_of
from harcache.stages.training.samples import CHECKPOINT

# Batches differ from evaluation's, so sums are rounded otherwise.
_TOLERANCE = 1e-5


def _probabilities(found: dict[str, Any]) -> list[np.ndarray]:
    """Each window's probabilities, by class number."""
    windows = [{one["label"]: one["probability"] for one in w["classes"]} for w in found["windows"]]
    return [np.array([window[label] for label in sorted(window)]) for window in windows]


def _evaluated(network: str, params: DatasetParams, workspace: Workspace, out: Path) -> dict[str, np.ndarray]:
    """What evaluation from the caches says of each test clip."""
    with Engine(workers=0) as engine:
        evaluate.run_custom(
            [workspace.training(network) / CHECKPOINT], None, out, False, params, workspace, engine
        )
    with np.load(out / "scores.npz") as kept:
        return dict(zip(kept["id"].tolist(), softmax(kept[network].astype(float)), strict=True))


@pytest.mark.parametrize("network", ["pose", "rgb", "epam"])
def test_a_raw_video_is_predicted_as_its_cached_clip(
    trained: Workspace, params: DatasetParams, tmp_path: Path, network: str
) -> None:
    wanted = _evaluated(network, params, trained, tmp_path)
    # Neither params.yaml nor the dataset is needed: the checkpoint says how its caches were made.
    predictor = Predictor(trained.training(network) / CHECKPOINT, None, None, None, "cpu")
    for clip in (clip for clip in read_manifest(trained.manifest) if clip.id in wanted):
        found = predictor.predict(trained.videos / clip.video, Options(top=12))
        assert np.abs(_probabilities(found)[0] - wanted[clip.id]).max() < _TOLERANCE
        assert found["windows"][0]["persons"] == (2 if clip.id.endswith("A011") else 1)
        assert found["windows"][0]["frames"] == [0, clip.frames]


def test_drawn_keypoints_and_many_samples_are_predicted_as_from_the_caches(
    trained: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    assert params.train is not None
    other = replace(params.train, sample=SampleParams(8, 4, "keypoints"), evaluate=EvaluateParams(3))
    params = replace(params, train=other)
    wanted = _evaluated("epam", params, trained, tmp_path)
    predictor = Predictor(trained.training("epam") / CHECKPOINT, params, trained, None, "cpu")
    clip = next(clip for clip in read_manifest(trained.manifest) if clip.id in wanted)
    found = predictor.predict(trained.videos / clip.video, Options(top=12))
    assert np.abs(_probabilities(found)[0] - wanted[clip.id]).max() < _TOLERANCE


@given(st.integers(1, 3000), st.floats(1, 120), st.floats(0.01, 60), st.none() | st.floats(0.01, 60))
def test_windows_start_every_stride_and_end_with_the_video(
    frames: int, fps: float, window: float, stride: float | None
) -> None:
    spans = cut(frames, fps, window, stride)
    length = min(max(1, round(window * fps)), frames)
    step = max(1, round((stride or window / 2) * fps))
    assert all(end - start == length for start, end in spans)
    assert [start for start, _ in spans[:-1]] == [step * i for i in range(len(spans) - 1)]
    assert spans[0][0] == 0 and spans[-1][1] == frames
    assert len(set(spans)) == len(spans)


def test_without_a_window_a_video_is_one_clip_and_with_one_its_rate_must_be_known() -> None:
    assert cut(77, 0, None, None) == [(0, 77)]
    with pytest.raises(
        HarcacheError, match="does not say how many frames it shows a second; predict without"
    ):
        cut(77, 0, 1.0, None)


def test_windows_tell_times_and_are_predicted_each_by_itself(
    trained: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    predictor = Predictor(trained.training("epam") / CHECKPOINT, None, None, None, "cpu")
    path = min(trained.videos.glob("*.mp4"))
    frames = probe(path).frames
    found = predictor.predict(path, Options(window=0.8, stride=0.4, top=12))
    spans = [window["frames"] for window in found["windows"]]
    assert spans[:2] == [[0, 24], [12, 36]] and spans[-1][1] == frames
    assert [(w["start"], w["end"]) for w in found["windows"][:2]] == [(0.0, 0.8), (0.4, 1.2)]
    # Losslessly, so that the part alone has the same pixels; it is looked at in batches of its own.
    alone = tmp_path / "alone.mp4"
    write_video(alone, read_frames(path, 12, 36), fps=30, crf=0)
    by_itself = predictor.predict(alone, Options(top=12))
    assert by_itself["windows"][0]["crop"] == pytest.approx(found["windows"][1]["crop"], abs=3)
    assert np.abs(_probabilities(by_itself)[0] - _probabilities(found)[1]).max() < 0.05


def _span(start: int, end: int) -> SpanPoses:
    """Nobody, in the whole image."""
    keypoints = np.empty((0, end - start, 17, 2), np.float32)
    nobody = np.empty((0, end - start, 17), np.float32)
    return SpanPoses(
        start, end, keypoints[:, :, 0], keypoints, nobody, (0, 0, 64, 48), "whole image: nobody found"
    )


def test_of_a_long_video_few_frames_are_held_at_a_time(
    params: DatasetParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, frames = tmp_path / "long.mp4", 1200
    write_video(path, (np.full((48, 64, 3), t % 256, np.uint8) for t in range(frames)), 30)
    alive: set[int] = set()
    most = 0

    def watched(*given: Any) -> Iterator[np.ndarray]:
        nonlocal most
        for number, frame in enumerate(read_frames(*given)):
            alive.add(number)
            weakref.finalize(frame, alive.discard, number)
            most = max(most, len(alive))
            yield frame

    monkeypatch.setattr(samples, "read_frames", watched)
    spans = [_span(start, start + 60) for start in range(0, frames - 59, 30)]
    with progress(frames, "long") as bar:
        told = [
            (one.span.start, one.frames)
            for one in read_samples(path, frames, spans, inputs_of("epam", params.train), params, bar)
        ]
    assert [start for start, _ in told] == [one.start for one in spans]
    assert all(start <= min(used) and max(used) < start + 60 for start, used in told)
    assert most <= 3


def _predict(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def test_a_failed_video_is_named_and_the_others_are_told(trained: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "good.mp4").symlink_to(min(trained.videos.glob("*.mp4")))
    (folder / "bad.mp4").write_text("no video")
    write_video(folder / "room.mp4", [np.full((96, 128, 3), 90, np.uint8)] * 20, fps=25)
    checkpoint = trained.training("epam") / CHECKPOINT
    done = _predict(folder, tmp_path / "nowhere.mp4", "--checkpoint", checkpoint, "--json", "--top", "3")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["network"] == "epam_net" and told["dataset"] == "demo"
    room, good = sorted(told["videos"], key=lambda one: one["video"], reverse=True)
    assert good["video"].endswith("deep/good.mp4") and room["video"].endswith("room.mp4")
    assert room["windows"][0]["persons"] == 0
    assert room["windows"][0]["crop_source"] == "whole image: nobody found"
    for one in (room, good):
        classes = one["windows"][0]["classes"]
        assert len(classes) == 3 and classes[0]["probability"] >= classes[1]["probability"]
    assert [Path(one["video"]).name for one in told["failed"]] == ["bad.mp4", "nowhere.mp4"]
    assert "2 of 4 videos failed" in done.stderr and "bad.mp4" in done.stderr
    assert "Traceback" not in done.output


def test_names_that_no_terminal_should_get_are_printed_with_escapes_and_the_others_go_on(
    trained: Workspace, tmp_path: Path
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    video = min(trained.videos.glob("*.mp4"))
    for name in (b"caf\xe9.mp4", b"a\x1b]0;owned\x07.mp4", b"two\nlines.mp4"):
        os.link(video, os.path.join(os.fsencode(folder), name))
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\x1b\xff.mp4")).write_text("no video")
    checkpoint = trained.training("pose") / CHECKPOINT
    done = _predict(folder, "--checkpoint", checkpoint, "--top", "1", "--overlay", tmp_path / "drawn")
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    names = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [name.rpartition("/")[2] for name in names] == [
        r"a\x1b]0;owned\x07.mp4", r"caf\udce9.mp4", r"two\nlines.mp4"
    ]  # fmt: skip
    assert r"bad\x1b\udcff.mp4" in done.stderr and "1 of 4 videos failed" in done.stderr
    assert "\x1b" not in done.output
    assert len(list((tmp_path / "drawn").iterdir())) == 3
    told = json.loads(_predict(folder, "--checkpoint", checkpoint, "--json").stdout)
    assert len(told["videos"]) == 3 and len(told["failed"]) == 1


def test_what_is_printed_names_times_persons_and_classes(trained: Workspace, tmp_path: Path) -> None:
    path = min(trained.videos.glob("*.mp4"))
    overlay = tmp_path / "drawn" / "out.mp4"
    checkpoint = trained.training("epam") / CHECKPOINT
    done = _predict(path, "--checkpoint", checkpoint, "--top", "2", "--window", "1", "--overlay", overlay)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == str(path) and lines[1] == "  0.0 to 1.0 s, 1 person"
    assert all(line.lstrip().split("%")[0].replace(".", "").isdigit() for line in lines[2:4])
    before, after = probe(path), probe(overlay)
    assert (after.frames, after.fps) == (before.frames, before.fps)
    assert after.height > before.height and after.width >= before.width


def test_the_overlay_shows_box_skeleton_attention_and_label() -> None:
    frame = np.full((241, 321, 3), 120, np.uint8)
    keypoints = np.random.default_rng(0).uniform(60, 180, (1, 10, 17, 2)).astype(np.float32)
    boxes = np.tile(np.array([50, 50, 190, 190], np.float32), (1, 10, 1))
    span = SpanPoses(0, 10, boxes, keypoints, np.ones((1, 10, 17), np.float32), (20, 20, 220, 220), "persons")
    attention = np.zeros((2, 8, 8), np.float32)
    attention[0, :4] = attention[1, 4:] = 1
    classes = [{"name": "wave $x$ ü", "probability": 0.9}, {"name": "kick", "probability": 0.1}]
    shown = Shown(SampledSpan(span, [], [0, 5]), classes, attention)
    drawn = _draw(frame, 0, shown, 0.3, 2)
    assert drawn.shape[0] % 2 == drawn.shape[1] % 2 == 0
    band = drawn.shape[0] - 2 * 241
    assert drawn[:band].max() == 255  # text
    picture = drawn[band:]
    assert (picture == (230, 159, 0)).all(axis=2).sum() > 500  # the first person's colour
    upper, lower = picture[60, 100], picture[430, 100]  # of the crop, beside the person
    assert upper.min() > 100 > lower.max()
    later = _draw(frame, 9, shown, 0.3, 2)[band:]
    assert later[430, 100].min() > 100 > later[60, 100].max()
    nobody = Shown(SampledSpan(_span(0, 10), [], []), classes, None)
    assert (_draw(frame, 0, nobody, 0.3, 2)[-2 * 100 :, 300:500] == 120).all()


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("a.mp4", "the overlay a.mp4 would take the place of that very video"),
        (".", "the overlay a.mp4 would take the place of that very video"),
        ("out.gif", "out.gif can't be written: give a name that ends with one of .mp4, .mkv"),
    ],
)
def test_an_overlay_never_takes_a_videos_place_and_is_refused_before_any_work(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlay: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.mp4").write_bytes(b"raw footage")
    done = _predict(".", "--checkpoint", trained.training("epam") / CHECKPOINT, "--overlay", overlay)
    assert done.exit_code == 1 and message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert Path("a.mp4").read_bytes() == b"raw footage"


@pytest.mark.parametrize("overlay", [".", "mine.mp4"])
def test_an_overlay_replaces_a_file_only_when_told_to(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlay: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.mp4").write_bytes(b"raw footage")
    Path("raw").mkdir()
    Path("raw/mine.mp4").symlink_to(min(trained.videos.glob("*.mp4")))
    asked = ("raw", "--checkpoint", trained.training("pose") / CHECKPOINT, "--overlay", overlay)
    done = _predict(*asked)
    assert done.exit_code == 1
    assert "--overlay would overwrite mine.mp4; give --overwrite too to replace what is there" in done.stderr
    assert Path("mine.mp4").read_bytes() == b"raw footage"
    assert _predict(*asked, "--overwrite").exit_code == 0
    assert probe(Path("mine.mp4")).frames == probe(Path("raw/mine.mp4")).frames


@pytest.mark.parametrize("suffix", OVERLAYS)
def test_an_overlay_of_any_shape_is_written_to_each_container(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / "wide.mp4", [np.zeros((20, 1200, 3), np.uint8)] * 2, 25)
    video = probe(tmp_path / "wide.mp4")
    nobody = (np.zeros((0, 2, *shape), np.float32) for shape in ((4,), (17, 2), (17,)))
    shown = Shown(
        SampledSpan(SpanPoses(0, 2, *nobody, (0, 0, 1200, 20), "image"), [], [0]),
        [{"name": "wave", "probability": 1}],
        None,
    )
    out = tmp_path / f"out{suffix}"
    with progress(2, "draw") as bar:
        write_overlay(out, tmp_path / "wide.mp4", video, [shown], 0.2, bar)
    assert probe(out).frames == 2 and probe(out).width == 3600


def test_one_overlay_file_for_two_videos_is_refused(trained: Workspace, tmp_path: Path) -> None:
    checkpoint = trained.training("pose") / CHECKPOINT
    done = _predict(trained.videos, "--checkpoint", checkpoint, "--overlay", tmp_path / "out.mp4")
    assert done.exit_code == 1
    assert "is one file for 6 videos; give a folder, without a suffix" in done.output


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(HarcacheError, match="holds no videos; give a file, or a folder with files such as"):
        videos_of(tmp_path)


def test_a_network_that_diverged_is_refused(
    trained: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    network, checkpoint = load_network(trained.training("pose") / CHECKPOINT)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    save_checkpoint(tmp_path / "nan.pt", network, checkpoint.classes, checkpoint.extra)
    message = "values that are no finite numbers; copy its file again, or train it again"
    predictor = Predictor(tmp_path / "nan.pt", None, None, None, "cpu")
    with pytest.raises(HarcacheError, match=message):
        predictor.predict(min(trained.videos.glob("*.mp4")), Options())
    with Engine(workers=0) as engine, pytest.raises(HarcacheError, match=message):
        evaluate.run_custom([tmp_path / "nan.pt"], None, tmp_path, False, params, trained, engine)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "does not say how the caches of its training were made; give --dataset"),
        ({"dataset": {"name": "demo"}}, "made with other parameters than this version has .* give --dataset"),
        ({"dataset": [1]}, "does not say how the caches"),
    ],
)
def test_a_checkpoint_that_does_not_say_how_its_caches_were_made_asks_for_the_dataset(
    trained: Workspace, tmp_path: Path, extra: dict[str, Any], message: str
) -> None:
    network, checkpoint = load_network(trained.training("pose") / CHECKPOINT)
    save_checkpoint(tmp_path / "old.pt", network, checkpoint.classes, extra)
    with pytest.raises(HarcacheError, match=message):
        Predictor(tmp_path / "old.pt", None, None, None, "cpu")


def test_a_network_without_names_takes_the_datasets_if_they_are_as_many(
    trained: Workspace, params: DatasetParams, tmp_path: Path
) -> None:
    network, _ = load_network(trained.training("pose") / CHECKPOINT)
    save_checkpoint(tmp_path / "nameless.pt", network)
    named = Predictor(tmp_path / "nameless.pt", params, trained, None, "cpu")
    assert named._classes[4] == "drink from a cup"
    elsewhere = replace(trained, data=tmp_path)
    assert Predictor(tmp_path / "nameless.pt", params, elsewhere, None, "cpu")._classes[4] == "4"
    (tmp_path / "classes.csv").write_text("protocol,label,name\nxsub,0,only one\n")
    with pytest.raises(HarcacheError, match="tells 12 classes apart, but demo's 'xsub' has 1; give the"):
        Predictor(tmp_path / "nameless.pt", params, elsewhere, None, "cpu")


@pytest.mark.parametrize(
    ("section", "key", "name"),
    [
        ("pose", "config", "laid.py"),
        ("pose", "config", "../laid"),
        ("pose", "config", "{folder}/laid.py"),
        ("pose", "weights", "laid/weights.pt"),
        ("pose", "weights", ".."),
        ("detect", "weights", "{folder}/weights.pt"),
    ],
)
def test_a_file_that_a_checkpoint_names_is_neither_run_nor_read(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, key: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for laid in ("laid.py", "laid/weights.pt", "weights.pt"):
        Path(laid).parent.mkdir(exist_ok=True)
        Path(laid).write_text("import pathlib\npathlib.Path('ran').touch()\n")
    network, checkpoint = load_network(trained.training("pose") / CHECKPOINT)
    checkpoint.extra["dataset"][section][key] = name = name.format(folder=tmp_path)
    save_checkpoint(tmp_path / "sent.pt", network, checkpoint.classes, checkpoint.extra)
    done = _predict(min(trained.videos.glob("*.mp4")), "--checkpoint", "sent.pt")
    assert done.exit_code == 1 and not Path("ran").exists()
    assert f"sent.pt names a file as {section}.{key}, '{name}', and a checkpoint may name none" in done.stderr
    assert "give --dataset, one of params.yaml that names that file" in done.stderr


def test_names_that_are_looked_up_lead_to_no_path() -> None:
    shipped = ("demo-yolo", "yolo11n.pt", "td-hm_hrnet-w32_8xb64-210e_coco-256x192")
    assert all(map(is_looked_up, shipped))
    assert not any(map(is_looked_up, ("", ".", "..", "a/b", "/a", "a.py", "a\n", "a..py", "~", "a\\b")))

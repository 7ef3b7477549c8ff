"""A preview shows what the stores hold, names what is missing, and takes the same clips every time."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache import cache
from harcache.commands import preview
from harcache.commands.predict import Options as Asked
from harcache.commands.predict import Predictor
from harcache.commands.preview import Options, choose
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip, read_manifest
from harcache.pipeline.params import DatasetParams
from harcache.pipeline.video.frames import probe
from harcache.stages.pictures.drawing import text_band, wrap_lines
from harcache.stages.pictures.montage import PANEL, Scene, picture, video_frames
from harcache.stages.shared.workspace import Workspace
from harcache.stages.training.samples import CHECKPOINT
from tests.tiny_demo import PARAMS, copy_of

_CLIP = "S001C001P003R001A011"


def _previews(
    capsys: pytest.CaptureFixture[str], workspace: Workspace, ids: list[str], options: Options
) -> list[dict[str, Any]]:
    preview.run(ids, PARAMS, workspace, options, "cpu", as_json=True)
    return json.loads(capsys.readouterr().out)["previews"]


def _clip(number: int, label: int) -> Clip:
    return Clip(
        f"clip{number}", "v.mp4", 0, 9, 48, 64, 25.0, 1, 1, "0" * 32, labels=(("xsub", label),),
        splits=(("xsub", "train"),),
    )  # fmt: skip


def test_a_preview_with_a_network_shows_every_store_and_says_what_prediction_says(
    trained: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained.training("epam") / CHECKPOINT
    (made,) = _previews(capsys, trained, [_CLIP], Options(tmp_path, checkpoint, columns=3))
    assert made["missing"] == []
    clip = next(clip for clip in read_manifest(trained.manifest) if clip.id == _CLIP)
    shown = probe(Path(made["video"]))
    assert (shown.frames, shown.fps) == (clip.frames, clip.fps)
    # The video, the crop, heatmaps and attention are beside each other.
    assert shown.width >= round(PANEL * clip.width / clip.height) + 3 * PANEL
    assert Path(made["picture"]).read_bytes().startswith(b"\x89PNG")
    predicted = Predictor(checkpoint, None, None, None, "cpu").predict(trained.videos / clip.video, Asked())
    for said, wanted in zip(made["classes"], predicted["windows"][0]["classes"], strict=True):
        assert said["name"] == wanted["name"]
        assert said["probability"] == pytest.approx(wanted["probability"], abs=1e-4)


def test_without_its_video_a_clip_is_shown_from_the_stores_and_that_is_said(
    demo: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = replace(demo, videos=tmp_path / "gone")
    preview.run([_CLIP], PARAMS, moved, Options(tmp_path / "out"), "cpu", as_json=False)
    told = capsys.readouterr()
    assert told.out.splitlines() == [str(tmp_path / "out" / f"{_CLIP}{kind}") for kind in (".png", ".mp4")]
    assert f"{_CLIP}: without its video: {tmp_path}/gone/{_CLIP}_rgb.mp4 is not there" in told.err
    assert probe(tmp_path / "out" / f"{_CLIP}.mp4").frames > 1


def test_a_clip_that_a_store_lacks_is_shown_without_it(
    own_demo: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_demo.rgb.rename(tmp_path / "elsewhere")
    own_demo.poses.rename(tmp_path / "poses")
    (made,) = _previews(capsys, own_demo, [_CLIP], Options(tmp_path / "out"))
    assert [note.partition(":")[0] for note in made["missing"]] == [
        "no keypoints are stored of it",
        "not in rgb.zarr",
    ]


def test_a_dataset_without_stores_has_nothing_to_see(own_demo: Workspace, tmp_path: Path) -> None:
    for cached in (own_demo.rgb, own_demo.heatmaps, own_demo.detections, own_demo.poses):
        cached.rename(tmp_path / cached.name)
    with pytest.raises(HarcacheError, match=r"has nothing to see yet; run the stages, or 'dvc repro'"):
        preview.run([_CLIP], PARAMS, own_demo, Options(tmp_path / "out"), "cpu", as_json=False)
    assert not (tmp_path / "out").exists()


def test_an_unknown_clip_is_answered_with_the_nearest_one(demo: Workspace, tmp_path: Path) -> None:
    wanted = r"demo has no clip 'S001C001P003R001A01l'; .* lists 6\. Did you mean 'S001C001P003R001A011'\?"
    with pytest.raises(HarcacheError, match=wanted):
        preview.run(["S001C001P003R001A01l"], PARAMS, demo, Options(tmp_path / "out"), "cpu", as_json=False)


def test_a_damaged_store_is_an_error_and_no_picture(own_demo: Workspace, tmp_path: Path) -> None:
    for shard in (own_demo.rgb / "frames").glob("c.*"):
        shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(HarcacheError, match=r"rgb\.zarr"):
        preview.run([_CLIP], PARAMS, own_demo, Options(tmp_path / "out"), "cpu", as_json=False)
    assert not (tmp_path / "out" / f"{_CLIP}.png").exists()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 9))
def test_clips_are_chosen_from_as_many_classes_as_there_can_be(labels: list[int], count: int) -> None:
    clips = [_clip(number, label) for number, label in enumerate(labels)]
    chosen = choose(clips, [], PARAMS, count)
    assert chosen == choose(clips, [], PARAMS, count)
    assert len({clip.id for clip in chosen}) == len(chosen) <= count
    assert len({clip.label("xsub") for clip in chosen}) == min(count, len(clips), len({*labels}))


def test_a_manifest_without_clips_is_said() -> None:
    with pytest.raises(HarcacheError, match="demo has no clips; run its index stage"):
        choose([], [], PARAMS, 4)


def _scene(store: cache.ClipStore) -> Scene:
    crops = store.frames(_CLIP)[:3]
    size, nothing = store.image_size(_CLIP), None
    return Scene(["one"], [], np.arange(3), size, nothing, nothing, nothing, nothing, crops, nothing, nothing)


def test_the_crops_shown_are_the_pixels_of_the_store(demo: Workspace, params: DatasetParams) -> None:
    store = cache.open(demo.rgb)
    scene = _scene(store)
    (first, *_) = video_frames(replace(scene, crops=_as_large_as_a_panel(scene.crops)), "")
    assert scene.crops is not None
    assert (first[-PANEL:, :PANEL] == _as_large_as_a_panel(scene.crops)[0]).all()
    shown = picture(scene, [0, 2])
    # A uniform crop stays what it is at any size.
    plain = replace(scene, crops=np.full_like(scene.crops, 77))
    assert (picture(plain, [0, 2])[-100:, :100] == 77).all()
    assert shown.shape == picture(plain, [0, 2]).shape


def _as_large_as_a_panel(crops: np.ndarray | None) -> np.ndarray:
    assert crops is not None
    tiled = np.tile(crops, (1, PANEL // crops.shape[1] + 1, PANEL // crops.shape[2] + 1, 1))
    return tiled[:, :PANEL, :PANEL]


@pytest.mark.parametrize("size", [(2, 4000), (4000, 2), (1080, 1920), (17, 31)])
@pytest.mark.parametrize("joints", [17, 25])
def test_a_video_of_any_shape_and_joints_fits_into_its_panel(size: tuple[int, int], joints: int) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (2, 3, joints, 2)) * size[::-1]
    points[1, 0] = np.nan
    maps = rng.integers(0, 256, (3, joints, 28, 28), np.uint8)
    boxes = [np.array([[0, 0, size[1], size[0], 0.9]])] * 3
    crop = np.array([-5, -5, size[1] + 5, size[0] + 5], np.float32)
    scene = Scene(["one"], ["two"], np.arange(3), size, None, boxes, points, crop, None, maps, None)
    frames = list(video_frames(scene, "said"))
    assert len({frame.shape for frame in frames}) == 1
    height, width, _ = frames[0].shape
    assert height % 2 == width % 2 == 0 and height < 2 * PANEL and width <= 4 * PANEL
    assert picture(scene, [0, 2]).shape[0] < 6 * PANEL


@pytest.mark.parametrize("text", ["W" * 15 + " " + "put on a hat or a cap, then take it off " * 5, "Ж" * 40])
def test_text_ends_before_the_picture_does(text: str) -> None:
    lines = wrap_lines([text], 480, 18)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert not text_band(lines, 480, 18)[:, -4:].any()


def test_previews_of_copies_of_a_dataset_are_the_same(
    demo: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = []
    for workspace, out in ((demo, tmp_path / "a"), (copy_of(demo, tmp_path), tmp_path / "b")):
        made = _previews(capsys, workspace, [], Options(out, count=2))
        pictures.append([(one["clip"], Path(one["picture"]).read_bytes()) for one in made])
    assert pictures[0] == pictures[1]
    assert [id[-4:] for id, _ in pictures[0]] == ["A005", "A011"]


def test_a_preview_replaces_a_file_of_another_folder_only_when_told_to(
    trained: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{_CLIP}.mp4").write_bytes(b"raw footage")
    message = f"--out would overwrite .*{_CLIP}.mp4; give --overwrite too to replace what is there"
    with pytest.raises(HarcacheError, match=message):
        preview.run([_CLIP], PARAMS, trained, Options(tmp_path, overwrite=False), "cpu", as_json=False)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"raw footage"]
    _previews(capsys, trained, [_CLIP], Options(tmp_path, overwrite=True))
    assert probe(tmp_path / f"{_CLIP}.mp4").frames > 1

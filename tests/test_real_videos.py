"""Videos that were filmed, of three sizes, three containers and several persons, through every stage."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from harcache import cache
from harcache.cache.annotations import read_poses
from harcache.cache.sampling import stored_frames
from harcache.commands import preview
from harcache.models.pretrained import mmpose_stand_ins
from harcache.models.pretrained.weight_files import find_config
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_manifest
from harcache.pipeline.datasets.demo import DemoSpec, generate_demo
from harcache.pipeline.params import (
    DatasetParams,
    FolderIndexParams,
    FramesParams,
    HeatmapParams,
    RgbParams,
    load_params,
)
from harcache.pipeline.video.frames import probe, read_frames
from harcache.pipeline.video.writing import write_video
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import Counts
from harcache.stages import crop, detect, heatmap, index, pose, rgb
from harcache.stages.rgb import crop_frame
from harcache.stages.shared.crop_table import read_crops
from harcache.stages.shared.units import inputs_from, parts_of
from harcache.stages.shared.workspace import Workspace

_ROOT = Path(__file__).parents[1]
_FILMED = _ROOT.parent / "shared" / "videos"
_STAGES = (index, detect, pose, crop, heatmap, rgb)
_HRNET_W32 = "td-hm_hrnet-w32_8xb64-210e_coco-256x192"
_SIZES = {
    "S001C001P001R001A001_rgb": (103, 1920, 1080),
    "demo": (280, 340, 256),
    "part_0": (32, 340, 256),
    "test.avi": (164, 320, 240),
    "test.mp4": (300, 340, 256),
}


def _params() -> DatasetParams:
    """The demo's networks on a folder of videos, with little stored."""
    return replace(
        load_params(_ROOT / "params.yaml", dataset="demo"),
        index=FolderIndexParams("folder"),
        frames=FramesParams(16),
        heatmap=HeatmapParams(shard_rows=64, size=28),
        rgb=RgbParams(shard_rows=64, size=112),
    )


def _run(params: DatasetParams, workspace: Workspace, *stages: object) -> list[Counts]:
    with Engine(workers=0) as engine:
        return [stage.run(params, workspace, engine) for stage in stages]  # type: ignore[attr-defined]


def _poses(workspace: Workspace, clip: str) -> tuple[np.ndarray, np.ndarray]:
    inputs = inputs_from(workspace.poses, read_manifest(workspace.manifest))
    return read_poses(parts_of(workspace.poses, inputs.token)[clip], clip)


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The filmed videos and an empty room, taken through the stages."""
    if not _FILMED.is_dir():
        pytest.skip(f"the sample videos are not here: {_FILMED} is missing")
    project = tmp_path_factory.mktemp("filmed")
    workspace = Workspace.under(project, "filmed", project / "videos")
    workspace.videos.mkdir(parents=True)
    for path in _FILMED.iterdir():
        (workspace.videos / path.name).symlink_to(path)
    write_video(workspace.videos / "room.mp4", [np.full((240, 320, 3), 90, np.uint8)] * 20, fps=25)
    assert _run(_params(), workspace, *_STAGES) == [Counts(ok=6, skipped=0, failed=0)] * len(_STAGES)
    return workspace


# 899 frames, a hundred of them of 1920x1080, are decoded three times and seen by two networks.
@pytest.mark.slow
def test_frames_and_sizes_are_what_the_videos_hold(filmed: Workspace) -> None:
    clips = {clip.id: (clip.frames, clip.width, clip.height) for clip in read_manifest(filmed.manifest)}
    assert clips == _SIZES | {"room": (20, 320, 240)}


@pytest.mark.slow
def test_the_crop_is_the_whole_image_where_nobody_is_found(filmed: Workspace) -> None:
    crops = read_crops(filmed.crops)
    for clip in read_manifest(filmed.manifest):
        keypoints, _ = _poses(filmed, clip.id)
        nobody = not np.isfinite(keypoints).any()
        assert (crops[clip.id].source == "whole image: nobody found") == nobody
        if nobody:
            assert crops[clip.id].box == (0, 0, clip.width, clip.height)
        x1, y1, x2, y2 = crops[clip.id].box
        assert 0 <= x1 < x2 <= clip.width and 0 <= y1 < y2 <= clip.height
    assert crops["room"].source == "whole image: nobody found"


@pytest.mark.slow
def test_both_stores_hold_the_same_frames_of_every_clip(filmed: Workspace) -> None:
    frames, heatmaps = cache.open(filmed.rgb), cache.open(filmed.heatmaps)
    clips = read_manifest(filmed.manifest)
    assert frames.ids == heatmaps.ids == tuple(clip.id for clip in clips)
    for clip in clips:
        chosen = stored_frames(clip.frames, 16).tolist()
        assert frames.frame_numbers(clip.id).tolist() == chosen
        assert heatmaps.frame_numbers(clip.id).tolist() == chosen


@pytest.mark.slow
def test_a_stored_frame_is_the_crop_of_the_decoded_one(filmed: Workspace) -> None:
    store = cache.open(filmed.rgb)
    for clip in read_manifest(filmed.manifest):
        last = store.frame_numbers(clip.id)[-1]
        decoded = next(islice(read_frames(filmed.videos / clip.video, 0, clip.frames), last, None))
        expected = crop_frame(decoded, read_crops(filmed.crops)[clip.id].box, 112)
        assert np.abs(store.frames(clip.id)[-1] - expected.astype(float)).mean() < 4, clip.id


@pytest.mark.slow
def test_a_preview_of_a_filmed_clip_shows_its_video_crops_and_heatmaps(
    filmed: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = ["S001C001P001R001A001_rgb", "room"]
    preview.run(clips, _params(), filmed, preview.Options(tmp_path, columns=3), "cpu", as_json=True)
    made = json.loads(capsys.readouterr().out)["previews"]
    assert [(one["clip"], one["missing"]) for one in made] == [(clip, []) for clip in clips]
    for one in made:
        assert probe(Path(one["video"])).frames == 16
        height, width, _ = cv2.imread(one["picture"]).shape
        # Below the text a row of the video, and one each of crops and heatmaps, which are square.
        column = (width - 2 * 4) / 3
        assert height > 2 * column + column * 9 / 16


def _few_frames(folder: Path) -> Iterator[np.ndarray]:
    """Four frames of a filmed person, or of a drawn one."""
    path = _FILMED / "S001C001P001R001A001_rgb.avi"
    if not path.exists():
        generate_demo(folder, DemoSpec(performers=(1, 2), cameras=1, actions=(5,)), workers=1)
        path = min(folder.glob("*.mp4"))
    return read_frames(path, 0, 4)


def _one_person(project: Path) -> Workspace:
    workspace = Workspace.under(project, "one", project / "videos", weights_dir=project)
    workspace.videos.mkdir(parents=True)
    write_video(workspace.videos / "person.mp4", _few_frames(project / "drawn"), fps=30)
    return workspace


# 28.5 million parameters see four frames twice on a CPU.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The metainfo config file")
def test_the_full_hrnet_runs_in_the_pose_stage(tmp_path: Path) -> None:
    workspace, params = _one_person(tmp_path), _params()
    full = replace(params.pose, config=_HRNET_W32, weights=_HRNET_W32, flip_test=True, max_persons=1)
    params = replace(params, detect=replace(params.detect, score=0.01), pose=full)
    assert _save_random_hrnet(tmp_path / f"{_HRNET_W32}.pth") > 28_000_000
    assert _run(params, workspace, index, detect, pose) == [Counts(ok=1, skipped=0, failed=0)] * 3
    keypoints, scores = _poses(workspace, "person")
    assert keypoints.shape == (1, 4, 17, 2)
    assert scores.shape == (1, 4, 17)
    assert np.isfinite(keypoints).any()


def _save_random_hrnet(path: Path) -> int:
    """Save the network that the config describes, untrained; return its number of parameters."""
    mmpose_stand_ins.install()
    from mmpose.apis import init_model

    torch.manual_seed(0)
    model = init_model(str(find_config(_HRNET_W32)), None, "cpu")
    torch.save({"state_dict": model.state_dict()}, path)
    return sum(values.numel() for values in model.parameters())


@pytest.mark.slow
def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    workspace = _one_person(tmp_path)
    params = replace(_params(), pose=replace(_params().pose, config=_HRNET_W32))
    _run(params, workspace, index, detect)
    with pytest.raises(HarcacheError, match=r"demo-hrnet\.pth: these weights don't fit the pose config"):
        _run(params, workspace, pose)

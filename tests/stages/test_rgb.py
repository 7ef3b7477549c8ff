"""Stored frames are the decoded ones cropped, row by row the heatmaps', and half a clip is no clip."""

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harcache import cache
from harcache.cache.annotations import read_poses
from harcache.cache.errors import CacheError
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_manifest
from harcache.pipeline.params import DatasetParams, FolderIndexParams, FramesParams, RgbParams
from harcache.pipeline.video.frames import read_frames
from harcache.pipeline.video.writing import write_video
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import Counts, read_failures
from harcache.stages import heatmap, index, rgb
from harcache.stages.rgb import crop_frame
from harcache.stages.shared.crop_table import read_crops
from harcache.stages.shared.units import part_file
from harcache.stages.shared.workspace import Workspace

_HEADER = "id,x1,y1,x2,y2,source,fingerprint\n"


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture without black in it."""
    small = np.random.default_rng(seed).integers(40, 216, (4, 5, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def test_a_crop_inside_the_frame_is_its_pixels_scaled() -> None:
    frame = _picture(60, 80)
    np.testing.assert_array_equal(crop_frame(frame, (10, 20, 42, 52), 32), frame[20:52, 10:42])
    half = crop_frame(frame, (10, 20, 42, 52), 16)
    mean = frame[20:52, 10:42].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(half, mean, rtol=0, atol=1)


def test_a_clipped_crop_is_stretched_to_the_square() -> None:
    frame = _picture(60, 80)
    stretched = crop_frame(frame, (0, 0, 40, 60), 60)
    np.testing.assert_array_equal(stretched[:, [0, -1]], frame[:, [0, 39]])


@settings(max_examples=100, deadline=None)
@given(
    corner=st.tuples(st.integers(-50, 79), st.integers(-50, 59)),
    side=st.integers(1, 60),
)
def test_what_lies_outside_the_frame_is_black(corner: tuple[int, int], side: int) -> None:
    (x1, y1), frame = corner, _picture(60, 80)
    x2, y2 = max(x1 + side, 1), max(y1 + side, 1)
    side_x, side_y = x2 - x1, y2 - y1
    around = np.zeros((60 + 200, 80 + 200, 3), np.uint8)
    around[100:160, 100:180] = frame
    expected = around[100 + y1 : 100 + y2, 100 + x1 : 100 + x2]
    if side_x == side_y:
        np.testing.assert_array_equal(crop_frame(frame, (x1, y1, x2, y2), side_x), expected)
    else:
        scaled = cv2.resize(expected, (16, 16), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(crop_frame(frame, (x1, y1, x2, y2), 16), scaled)


def test_a_crop_far_larger_than_its_frame_fails_instead_of_taking_all_memory() -> None:
    with pytest.raises(
        HarcacheError, match=r"1000x1001 pixels is over 4 times its frame of 80x60.* crop\.fit"
    ):
        crop_frame(_picture(60, 80), (-500, -500, 500, 501), 16)


def _expected(workspace: Workspace, clip_id: str, size: int) -> np.ndarray:
    """Every frame of a clip, decoded, cropped by the table and scaled: (T, size, size, 3)."""
    clip = next(clip for clip in read_manifest(workspace.manifest) if clip.id == clip_id)
    x1, y1, x2, y2 = read_crops(workspace.crops)[clip_id].box
    frames = read_frames(workspace.videos / clip.video, clip.start, clip.end)
    return np.stack([cv2.resize(frame[y1:y2, x1:x2], (size, size)) for frame in frames])


def _run(params: DatasetParams, workspace: Workspace) -> Counts:
    with Engine(workers=0) as engine:
        return rgb.run(params, workspace, engine)


def test_stored_frames_are_the_cropped_ones_within_jpegs_error(demo: Workspace) -> None:
    store = cache.open(demo.rgb)
    assert store.ids == tuple(clip.id for clip in read_manifest(demo.manifest))
    for clip_id in store.ids:
        stored, expected = store.frames(clip_id), _expected(demo, clip_id, 64)
        assert stored.shape == expected.shape
        difference = np.abs(stored.astype(int) - expected)
        assert difference.mean() < 3 and difference.max() < 32


def test_stored_frames_without_loss_are_the_cropped_ones(own_demo: Workspace, params: DatasetParams) -> None:
    lossless = replace(params, rgb=RgbParams(shard_rows=128, size=48, codec="zstd"))
    assert _run(lossless, own_demo) == Counts(6, 0, 0)
    store = cache.open(own_demo.rgb)
    for clip_id in store.ids:
        np.testing.assert_array_equal(store.frames(clip_id), _expected(own_demo, clip_id, 48))


def test_a_padded_crop_is_black_outside_the_frame(own_demo: Workspace, params: DatasetParams) -> None:
    clip = read_manifest(own_demo.manifest)[0]
    lines = own_demo.crops.read_text().splitlines()
    moved = [clip.id, "-100", "0", str(clip.height - 100), str(clip.height), "persons", "moved"]
    lines[1] = ",".join([*moved, *lines[1].split(",")[len(moved) :]])
    own_demo.crops.write_text("\n".join(lines) + "\n")
    _run(replace(params, rgb=RgbParams(shard_rows=128, size=clip.height, codec="zstd")), own_demo)
    stored = cache.open(own_demo.rgb).frames(clip.id)
    first = next(read_frames(own_demo.videos / clip.video, 0, 1))
    assert not stored[:, :, :100].any()
    np.testing.assert_array_equal(stored[0, :, 100:], first[:, : clip.height - 100])


@pytest.mark.parametrize("max_frames", [None, 7])
def test_a_row_is_the_same_source_frame_in_both_stores(
    own_demo: Workspace, params: DatasetParams, max_frames: int | None
) -> None:
    fewer = replace(
        params,
        frames=FramesParams(max_frames),
        rgb=RgbParams(shard_rows=128, size=48, codec="zstd"),
    )
    with Engine(workers=0) as engine:
        heatmap.run(fewer, own_demo, engine)
    _run(fewer, own_demo)
    frames, heatmaps = cache.open(own_demo.rgb), cache.open(own_demo.heatmaps)
    assert frames.ids == heatmaps.ids
    for clip_id in frames.ids:
        numbers = frames.frame_numbers(clip_id)
        np.testing.assert_array_equal(numbers, heatmaps.frame_numbers(clip_id))
        np.testing.assert_array_equal(frames.frames(clip_id), _expected(own_demo, clip_id, 48)[numbers])
        _, scores = read_poses(part_file(own_demo.poses, 0), clip_id)
        stored = heatmaps.keypoints(clip_id)[:, : len(scores), :, 2]
        np.testing.assert_allclose(stored, scores[:, numbers].swapaxes(0, 1), rtol=1e-3)


@pytest.fixture
def long_clips(tmp_path: Path, params: DatasetParams) -> tuple[DatasetParams, Workspace]:
    """Four videos of 20 frames, indexed, whose crops are written by hand; all fit into one shard."""
    workspace = replace(Workspace.under(tmp_path, "small", tmp_path / "videos"), max_failed=1.0)
    for number in range(4):
        pictures = [np.roll(_picture(96, 128, number), 5 * t, axis=1) for t in range(20)]
        path = workspace.videos / f"clip{number}{'.avi' if number == 2 else '.mkv'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, pictures, 25, "mpeg4", 3)
    small = replace(
        params, index=FolderIndexParams("folder"), rgb=RgbParams(shard_rows=100, size=32, codec="zstd")
    )
    with Engine(workers=0) as engine:
        index.run(small, workspace, engine)
    rows = "".join(f"{clip.id},4,4,44,44,persons,{clip.id}\n" for clip in read_manifest(workspace.manifest))
    workspace.crops.write_text(_HEADER + rows)
    return small, workspace


def _cut(video: Path) -> None:
    content = video.read_bytes()
    video.write_bytes(content[: len(content) * 8 // 10])


@pytest.mark.parametrize(
    ("broken", "reason"),
    [("clip1.mkv", r"decoded 1\d of 20 frames"), ("clip2.avi", r"frame 1\d is damaged")],
)
def test_a_video_that_breaks_half_way_fails_alone_and_its_rows_are_taken_back(
    long_clips: tuple[DatasetParams, Workspace], broken: str, reason: str
) -> None:
    small, workspace = long_clips
    _cut(workspace.videos / broken)
    assert _run(small, workspace) == Counts(3, 0, 1)
    ((name, status, why),) = read_failures(workspace.failures("rgb"))
    assert (name, status) == (broken[:5], "failed") and re.search(reason, why)
    store = cache.open(workspace.rgb)
    assert store.start.tolist() == [0, 20, 40]
    assert len(store.ids) == 3
    for clip_id in store.ids:
        np.testing.assert_array_equal(store.frames(clip_id), _expected(workspace, clip_id, 32))
    with pytest.raises(CacheError, match=f"no clip '{name}' among 3"):
        store.frames(name)


def test_another_video_under_an_indexed_name_fails_alone(
    long_clips: tuple[DatasetParams, Workspace],
) -> None:
    small, workspace = long_clips
    first = read_manifest(workspace.manifest)[0]
    path = workspace.videos / first.video
    write_video(path, [_picture(96, 128, seed)[..., ::-1] for seed in range(first.frames)], 25, "mpeg4", 3)
    assert _run(small, workspace) == Counts(3, 0, 1)
    ((name, status, why),) = read_failures(workspace.failures("rgb"))
    assert (name, status) == (first.id, "failed") and "when it was indexed; run the index stage again" in why


def _shards(workspace: Workspace) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (workspace.rgb / "frames").glob("c.*")}


def test_the_shard_is_as_if_the_broken_video_had_never_been(
    long_clips: tuple[DatasetParams, Workspace], tmp_path: Path
) -> None:
    small, workspace = long_clips
    _cut(workspace.videos / "clip1.mkv")
    _run(small, workspace)
    without = replace(workspace, data=tmp_path / "without")
    without.data.mkdir()
    for name in ("manifest.csv", "crops.csv"):
        lines = (workspace.data / name).read_text().splitlines(keepends=True)
        (without.data / name).write_text("".join(line for line in lines if not line.startswith("clip1")))
    _run(small, without)
    assert _shards(workspace) == _shards(without)


def test_a_shard_of_broken_videos_alone_is_no_file(long_clips: tuple[DatasetParams, Workspace]) -> None:
    small, workspace = long_clips
    for video in workspace.videos.iterdir():
        _cut(video)
    with pytest.raises(HarcacheError, match="rgb: none of 4 clips can be used, 0 skipped and 4 failed"):
        _run(small, workspace)
    assert _shards(workspace) == {}
    assert cache.open(workspace.rgb).ids == ()


def test_a_mended_video_is_stored_when_asked_and_its_part_made_again(
    long_clips: tuple[DatasetParams, Workspace],
) -> None:
    small, workspace = long_clips
    video = workspace.videos / "clip1.mkv"
    whole = video.read_bytes()
    _cut(video)
    _run(small, workspace)
    video.write_bytes(whole)
    assert _run(small, workspace) == Counts(3, 0, 1)
    assert _run(small, replace(workspace, retry_failed=True)) == Counts(4, 0, 0)
    np.testing.assert_array_equal(
        cache.open(workspace.rgb).frames("clip1"), _expected(workspace, "clip1", 32)
    )


def test_the_same_clips_give_the_same_bytes_and_a_second_run_none(
    long_clips: tuple[DatasetParams, Workspace], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, workspace = long_clips
    parts = replace(small, rgb=replace(small.rgb, shard_rows=40))
    _run(parts, workspace)
    other = replace(workspace, data=tmp_path / "other")
    other.data.mkdir()
    for name in ("manifest.csv", "crops.csv"):
        (other.data / name).write_bytes((workspace.data / name).read_bytes())
    _run(parts, other)
    assert len(_shards(workspace)) == 2
    assert _shards(workspace) == _shards(other)
    capsys.readouterr()
    _run(parts, workspace)
    assert "rgb: nothing to do, 4 clips are there" in capsys.readouterr().out
    assert _shards(workspace) == _shards(other)

"""Heatmaps are the released code's, joint by joint, and the store gives back what was drawn."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harcache import cache
from harcache.cache.annotations import read_poses
from harcache.cache.errors import CacheError
from harcache.cache.store_paths import records_dir
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_manifest, write_manifest
from harcache.pipeline.params import DatasetParams, FramesParams, HeatmapParams
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import Counts, read_failures, write_failures
from harcache.pipeline.work.parts import Outcome
from harcache.stages import heatmap
from harcache.stages.heatmap import draw_heatmaps
from harcache.stages.shared.crop_table import read_crops
from harcache.stages.shared.units import part_file
from harcache.stages.shared.workspace import Workspace

_HALF_A_GREY_LEVEL = 0.5 / 255
_SIZE = 32  # of the tiny demo's maps


def _draw_joint_by_joint(keypoints: np.ndarray, scores: np.ndarray, size: int, sigma: float) -> np.ndarray:
    """The facts of the released code: one window of one Gaussian after the other."""
    persons, frames, joints = scores.shape
    volume = np.zeros((frames, joints, size, size))
    for m, t, k in np.ndindex(persons, frames, joints):
        (mu_x, mu_y), score = keypoints[m, t, k].tolist(), float(scores[m, t, k])
        if math.isnan(mu_x) or math.isnan(mu_y) or score < 1e-4:
            continue
        for y in range(max(int(mu_y - 3 * sigma), 0), min(int(mu_y + 3 * sigma) + 1, size)):
            for x in range(max(int(mu_x - 3 * sigma), 0), min(int(mu_x + 3 * sigma) + 1, size)):
                value = math.exp(-((x - mu_x) ** 2 + (y - mu_y) ** 2) / 2 / sigma**2) * score
                volume[t, k, y, x] = max(volume[t, k, y, x], value)
    return volume


@st.composite
def _poses(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 4)))
    place = st.one_of(st.just(float("nan")), st.floats(-6, 30), st.integers(-3, 26).map(float))
    score = st.one_of(st.sampled_from([0.0, 9e-5, 1e-4, 1.0]), st.floats(0, 1))
    keypoints = draw(hnp.arrays(np.float64, (*shape, 2), elements=place, fill=st.nothing()))
    return keypoints, draw(hnp.arrays(np.float64, shape, elements=score, fill=st.nothing()))


@settings(max_examples=150, deadline=None)
@given(poses=_poses(), size=st.integers(4, 24), sigma=st.sampled_from([0.4, 0.6, 1.0, 2.0]))
def test_maps_are_the_released_codes_within_half_a_grey_level(
    poses: tuple[np.ndarray, np.ndarray], size: int, sigma: float
) -> None:
    drawn = draw_heatmaps(*poses, size, sigma)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(
        drawn, _draw_joint_by_joint(*poses, size, sigma), rtol=0, atol=_HALF_A_GREY_LEVEL
    )


def _at(*points: tuple[float, float]) -> np.ndarray:
    """Keypoints (M, 1, 1, 2): one joint of each person in one frame."""
    return np.array(points)[:, None, None]


def test_a_joint_is_as_high_as_its_score_at_its_place_x_before_y() -> None:
    (joint,) = draw_heatmaps(_at((12, 5)), np.full((1, 1, 1), 0.8), 20, 0.6)[0]
    assert np.unravel_index(joint.argmax(), joint.shape) == (5, 12)
    assert joint.max() == pytest.approx(0.8)
    assert np.flatnonzero(joint.max(axis=0)).tolist() == [10, 11, 12, 13]


def test_persons_are_merged_by_the_maximum() -> None:
    keypoints, scores = _at((6, 6), (7, 6)), np.array([0.9, 0.6])[:, None, None]
    both = draw_heatmaps(keypoints, scores, 16, 0.6)
    apart = [draw_heatmaps(keypoints[m : m + 1], scores[m : m + 1], 16, 0.6) for m in (0, 1)]
    np.testing.assert_array_equal(both, np.maximum(*apart))
    assert both.max() == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("point", "score"), [((math.nan, 5), 1.0), ((5, math.nan), 1.0), ((5, 5), 9e-5), ((-9, 5), 1.0)]
)
def test_joints_that_are_missing_unsure_or_outside_leave_no_trace(
    point: tuple[float, float], score: float
) -> None:
    assert not draw_heatmaps(_at(point), np.full((1, 1, 1), score), 16, 0.6).any()


def test_a_score_of_one_in_ten_thousand_is_drawn() -> None:
    assert draw_heatmaps(_at((5, 5)), np.full((1, 1, 1), 1e-4), 16, 0.6).any()


def _in_crop(workspace: Workspace, clip_id: str) -> tuple[np.ndarray, np.ndarray]:
    """The clip's keypoints in its crop, 0..1, and scores, from the poses and the table of crops."""
    keypoints, scores = read_poses(part_file(workspace.poses, 0), clip_id)
    x1, y1, x2, y2 = read_crops(workspace.crops)[clip_id].box
    return (keypoints - np.array([x1, y1])) / np.array([x2 - x1, y2 - y1]), scores


def test_the_stored_volume_is_what_the_poses_draw(demo: Workspace) -> None:
    store = cache.open(demo.heatmaps)
    clips = read_manifest(demo.manifest)
    assert store.ids == tuple(clip.id for clip in clips)
    for clip in clips:
        volume = store.heatmaps(clip.id)
        assert volume.shape == (clip.frames, 17, _SIZE, _SIZE)
        some = [0, clip.frames // 2, clip.frames - 1]
        in_crop, scores = _in_crop(demo, clip.id)
        expected = _draw_joint_by_joint(in_crop[:, some] * _SIZE, scores[:, some], _SIZE, 0.6)
        # Half a level of rounding; a score may be a little over 1, a grey level not.
        np.testing.assert_allclose(volume[some], (expected * 255).clip(0, 255), rtol=0, atol=0.501)


def test_the_stored_keypoints_are_the_poses_in_the_crop(demo: Workspace) -> None:
    store = cache.open(demo.heatmaps)
    for clip_id in store.ids:
        stored = store.keypoints(clip_id)
        in_crop, scores = _in_crop(demo, clip_id)
        found = len(scores)
        assert stored.shape == (scores.shape[1], 2, 17, 3)
        # float16 holds numbers near 1 to one in 2048.
        np.testing.assert_allclose(stored[:, :found, :, :2], in_crop.swapaxes(0, 1), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(stored[:, :found, :, 2], scores.swapaxes(0, 1), rtol=1e-3, atol=1e-3)
        assert np.isnan(stored[:, found:, :, :2]).all() and not stored[:, found:, :, 2].any()


def test_the_index_tells_each_rows_frame_and_the_crop(demo: Workspace) -> None:
    store, crops = cache.open(demo.heatmaps), read_crops(demo.crops)
    for clip in read_manifest(demo.manifest):
        np.testing.assert_array_equal(store.frame_numbers(clip.id), range(clip.frames))
        np.testing.assert_array_equal(store.box(clip.id), crops[clip.id].box)
        assert store.image_size(clip.id) == (clip.height, clip.width)


def _run(params: DatasetParams, workspace: Workspace) -> Counts:
    with Engine(workers=0) as engine:
        return heatmap.run(params, workspace, engine)


def _bytes(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def test_a_second_run_makes_no_part_and_changes_no_byte(
    own_demo: Workspace, params: DatasetParams, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _bytes(own_demo.heatmaps)
    assert _run(params, own_demo) == Counts(6, 0, 0)
    assert "heatmap: nothing to do, 6 clips are there" in capsys.readouterr().out
    assert _bytes(own_demo.heatmaps) == before


def test_another_size_makes_the_store_anew(
    own_demo: Workspace, params: DatasetParams, capsys: pytest.CaptureFixture[str]
) -> None:
    small = replace(params, heatmap=HeatmapParams(shard_rows=64, size=28))
    assert _run(small, own_demo) == Counts(6, 0, 0)
    assert "it is made anew" in capsys.readouterr().err
    store = cache.open(own_demo.heatmaps)
    assert {store.heatmaps(name).shape[1:] for name in store.ids} == {(17, 28, 28)}
    assert store.attributes["parameters"]["size"] == 28


def test_at_most_max_frames_are_stored_and_the_index_says_which(
    own_demo: Workspace, params: DatasetParams
) -> None:
    _run(replace(params, frames=FramesParams(7)), own_demo)
    store = cache.open(own_demo.heatmaps)
    for clip in read_manifest(own_demo.manifest):
        frames = store.frame_numbers(clip.id)
        assert len(frames) == 7 and frames[0] > 0 and frames[-1] < clip.frames - 1
        in_crop, scores = _in_crop(own_demo, clip.id)
        one = frames[3:4]
        expected = _draw_joint_by_joint(in_crop[:, one] * _SIZE, scores[:, one], _SIZE, 0.6)
        stored = store.heatmaps(clip.id)[3:4]
        np.testing.assert_allclose(stored, (expected * 255).clip(0, 255), rtol=0, atol=0.501)


def test_a_moved_crop_remakes_its_part_alone(own_demo: Workspace, params: DatasetParams) -> None:
    store = cache.open(own_demo.heatmaps)
    first, last = store.ids[0], store.ids[-1]
    old_first, old_last = store.heatmaps(first), store.heatmaps(last)
    lines = own_demo.crops.read_text().splitlines()
    _, x1, y1, x2, y2, source, _, *quality = lines[1].split(",")
    box = x1, y1, str(int(x2) - 20), str(int(y2) - 20)
    lines[1] = ",".join([first, *box, source, "moved", *quality])
    own_demo.crops.write_text("\n".join(lines) + "\n")
    records = records_dir(own_demo.heatmaps)
    before = {path.name: path.stat().st_mtime_ns for path in records.glob("part-*")}
    assert _run(params, own_demo) == Counts(6, 0, 0)
    after = {path.name: path.stat().st_mtime_ns for path in records.glob("part-*")}
    assert [name for name in after if after[name] != before[name]] == ["part-00000.json"]
    store = cache.open(own_demo.heatmaps)
    assert (store.heatmaps(first) != old_first).any()
    np.testing.assert_array_equal(store.heatmaps(last), old_last)


def test_a_clip_that_the_crop_stage_failed_is_skipped(own_demo: Workspace, params: DatasetParams) -> None:
    lines = own_demo.crops.read_text().splitlines()
    name = lines[-1].partition(",")[0]
    own_demo.crops.write_text("\n".join(lines[:-1]) + "\n")
    write_failures(own_demo.failures("crop"), [Outcome(name, "failed", "", "by hand")])
    assert _run(params, own_demo) == Counts(5, 1, 0)
    assert read_failures(own_demo.failures("heatmap")) == [(name, "skipped", "failed in crop")]
    with pytest.raises(CacheError, match=f"no clip '{name}' among 5"):
        cache.open(own_demo.heatmaps).heatmaps(name)


def test_crops_older_than_the_manifest_are_an_error_that_says_which_stages_to_run(
    own_demo: Workspace, params: DatasetParams
) -> None:
    clips = read_manifest(own_demo.manifest)
    lines = own_demo.crops.read_text().splitlines()
    own_demo.crops.write_text("\n".join(lines[:-1]) + "\n")
    lacks = rf"crops\.csv is older than .*manifest\.csv: it lacks 1 of 6 clips, first '{clips[-1].id}'; run "
    with pytest.raises(HarcacheError, match=lacks + "'harcache crop demo' first, or 'dvc repro'"):
        _run(params, own_demo)
    (own_demo.failures("crop")).unlink()
    with pytest.raises(HarcacheError, match=lacks + "'harcache crop demo' first"):
        _run(params, own_demo)
    write_manifest(own_demo.manifest, [*clips, replace(clips[0], id="new")])
    with pytest.raises(
        HarcacheError, match=r"lacks 2 of 7.*run 'harcache detect demo', 'harcache pose demo', 'harcache crop"
    ):
        _run(params, own_demo)


def test_crops_of_a_video_that_was_replaced_are_an_error(own_demo: Workspace, params: DatasetParams) -> None:
    clips = read_manifest(own_demo.manifest)
    write_manifest(own_demo.manifest, [replace(clips[0], mtime_ns=7), *clips[1:]])
    assert _run(params, own_demo) == Counts(6, 0, 0)
    write_manifest(own_demo.manifest, [replace(clips[0], digest="other"), *clips[1:]])
    message = (
        rf"crops\.csv is older than .*manifest\.csv: 1 of 6 clips have other frames now, first "
        rf"'{clips[0].id}'; run 'harcache detect demo', 'harcache pose demo', 'harcache crop demo' first"
    )
    with pytest.raises(HarcacheError, match=message):
        _run(params, own_demo)
    # Tables of earlier versions don't say of which clips they are.
    rows = [line.split(",") for line in own_demo.crops.read_text().splitlines()]
    own_demo.crops.write_text("".join(",".join([*row[:7], *row[8:]]) + "\n" for row in rows))
    assert _run(params, own_demo) == Counts(6, 0, 0)


def test_a_clip_longer_than_a_shard_is_named(own_demo: Workspace, params: DatasetParams) -> None:
    longest = max(read_manifest(own_demo.manifest), key=lambda clip: clip.frames)
    rows = longest.frames - 1
    message = f"'{longest.id}' has {rows + 1} rows, a part takes {rows}: raise shard_rows, or store fewer"
    with pytest.raises(HarcacheError, match=message):
        _run(replace(params, heatmap=HeatmapParams(shard_rows=rows, size=_SIZE)), own_demo)

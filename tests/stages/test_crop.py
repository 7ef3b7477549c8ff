"""One box a clip: the released code's to the pixel, or the whole image, in a table whose damage is found."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harcache.cache.annotations import write_poses
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip, read_manifest, write_manifest
from harcache.pipeline.datasets.truth import read_truth
from harcache.pipeline.params import DatasetParams
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import Counts, read_failures, write_counts
from harcache.pipeline.work.parts import Outcome, publish, read_records
from harcache.stages import crop
from harcache.stages.crop import global_box
from harcache.stages.persons.slots import SLOT_RULES
from harcache.stages.shared.crop_table import Crop, flag_counts, read_crops, write_crops
from harcache.stages.shared.quality import Quality
from harcache.stages.shared.workspace import Workspace

_HEADER = "id,x1,y1,x2,y2,source,fingerprint\n"
_ROW = "a,1,-2,30,40,persons,ff\n"


def _released_box(keypoints: np.ndarray, height: int, width: int, fit: str) -> tuple[int, int, int, int]:
    """The facts of the released code, point by point; only a box that misses the image is this project's."""
    xs, ys = [], []
    for person in keypoints.tolist():
        for frame in person:
            for x, y in frame:
                x, y = (0.0 if math.isnan(value) else value for value in (x, y))
                if x != 0:
                    xs.append(x)
                if y != 0:
                    ys.append(y)
    if not xs or not ys or max(xs) - min(xs) < 10 or max(ys) - min(ys) < 10:
        return 0, 0, width, height
    half_width, half_height = (max(xs) - min(xs)) / 2 * 1.25, (max(ys) - min(ys)) / 2 * 1.25
    half_width, half_height = max(half_width, half_height), max(half_height, half_width)
    center_x, center_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    x1, y1 = center_x - half_width, center_y - half_height
    x2, y2 = center_x + half_width, center_y + half_height
    if int(max(0, x1)) >= int(min(width, x2)) or int(max(0, y1)) >= int(min(height, y2)):
        return 0, 0, width, height
    if fit == "clip":
        return int(max(0, x1)), int(max(0, y1)), int(min(width, x2)), int(min(height, y2))
    return int(x1), int(y1), int(x2), int(y2)


def _coordinates() -> st.SearchStrategy[float]:
    anywhere = st.floats(-400, 700, width=32)
    # Narrow ranges too, around and beyond the borders, so that small persons and missed images come up.
    near = st.one_of(
        st.floats(-30, 2, width=32), st.floats(300, 345, width=32), st.floats(100, 114, width=32)
    )
    return st.one_of(st.just(0.0), st.just(float("nan")), anywhere, near)


_KEYPOINTS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 5), st.just(2)),
    elements=_coordinates(),
    fill=st.nothing(),
)


@settings(max_examples=400, deadline=None)
@given(
    keypoints=_KEYPOINTS,
    height=st.integers(16, 400),
    width=st.integers(16, 400),
    fit=st.sampled_from(["clip", "pad"]),
)
def test_the_box_is_the_released_codes_to_the_pixel(
    keypoints: np.ndarray, height: int, width: int, fit: str
) -> None:
    assert global_box(keypoints, (height, width), 0.25, fit) == _released_box(keypoints, height, width, fit)


@settings(max_examples=200, deadline=None)
@given(keypoints=_KEYPOINTS, padding=st.floats(0, 2), fit=st.sampled_from(["clip", "pad"]))
def test_the_box_always_shows_some_of_the_image(keypoints: np.ndarray, padding: float, fit: str) -> None:
    x1, y1, x2, y2 = global_box(keypoints, (240, 320), padding, fit)
    assert max(x1, 0) < min(x2, 320) and max(y1, 0) < min(y2, 240)
    if fit == "clip":
        assert x1 >= 0 and y1 >= 0 and x2 <= 320 and y2 <= 240


def _person(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    """Keypoints (1, 1, 2, 2) at two corners."""
    return np.array([[[[x1, y1], [x2, y2]]]], np.float32)


@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
def test_infinite_keypoints_do_not_count(infinite: float) -> None:
    keypoints = np.array([[[[20, 30], [80, 90], [infinite, infinite]]]], np.float32)
    assert global_box(keypoints, (240, 320)) == global_box(keypoints[:, :, :2], (240, 320))


def test_the_shorter_side_grows_to_the_longer() -> None:
    assert global_box(_person(100, 60, 140, 160), (240, 320)) == (57, 47, 182, 172)


def test_what_leaves_the_image_is_clipped_or_stays() -> None:
    keypoints = _person(10, 20, 60, 220)
    assert global_box(keypoints, (240, 320), fit="clip") == (0, 0, 160, 240)
    assert global_box(keypoints, (240, 320), fit="pad") == (-90, -5, 160, 245)


@pytest.mark.parametrize(("extent", "box"), [(9.5, (0, 0, 320, 240)), (10, (98, 58, 111, 71))])
def test_an_extent_under_ten_pixels_is_nobody(extent: float, box: tuple[int, ...]) -> None:
    # The box of 10 pixels is 98.75 58.75 111.25 71.25.
    assert global_box(_person(100, 60, 100 + extent, 60 + extent), (240, 320)) == box


@pytest.mark.parametrize("fit", ["clip", "pad"])
def test_persons_beside_the_image_give_the_whole_image(fit: str) -> None:
    assert global_box(_person(-300, 60, -200, 100), (240, 320), fit=fit) == (0, 0, 320, 240)
    assert global_box(_person(60, 500, 100, 540), (240, 320), fit=fit) == (0, 0, 320, 240)


def _poses(clip: Clip, points: np.ndarray, score: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Poses (M, T, 17, 2) and scores with the corners of ``points`` (M, 1, 2, 2) in every frame."""
    keypoints = np.repeat(np.repeat(points, clip.frames, axis=1), 9, axis=2)[:, :, :17].astype(np.float32)
    return keypoints, np.full(keypoints.shape[:3], score, np.float32)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Four clips whose poses are written by hand: found, nobody, too unsure, beside the image."""
    workspace = Workspace.under(tmp_path, "small", tmp_path / "videos")
    names = ("found", "nobody", "unsure", "beside")
    clips = [Clip(name, f"{name}.mp4", 0, 4, 240, 320, 25.0, 1, 1, name) for name in names]
    write_manifest(workspace.manifest, clips)
    nobody = np.empty((0, 4, 17, 2), np.float32), np.empty((0, 4, 17), np.float32)
    poses = dict(zip(names, [
        _poses(clips[0], _person(100, 60, 140, 160)),
        nobody,
        _poses(clips[2], _person(100, 60, 140, 160), score=0.1),
        _poses(clips[3], _person(-300, 60, -200, 100)),
    ], strict=True))  # fmt: skip
    for folder in (workspace.detections, workspace.poses):
        folder.mkdir(parents=True)
        write_poses(folder / "new", poses)
        outcomes = [Outcome(name, "ok", f"{folder.name} {name}") for name in names]
        publish(folder, folder, 0, outcomes, {folder / "new": folder / "part-00000.h5"}, rules=SLOT_RULES)
    return workspace


def _run(params: DatasetParams, workspace: Workspace) -> Counts:
    with Engine(workers=0) as engine:
        return crop.run(params, workspace, engine)


def test_a_clip_without_persons_gets_the_whole_image_and_says_why(
    workspace: Workspace, params: DatasetParams, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(params, workspace) == Counts(4, 0, 0)
    crops = read_crops(workspace.crops)
    assert {name: (one.box, one.source) for name, one in crops.items()} == {
        "found": ((57, 47, 182, 172), "persons"),
        "nobody": ((0, 0, 320, 240), "whole image: nobody found"),
        "unsure": ((0, 0, 320, 240), "whole image: no keypoint scores enough"),
        "beside": ((0, 0, 320, 240), "whole image: persons fill or miss it"),
    }
    assert "crop: 3 of 4 boxes are the whole image" in capsys.readouterr().out


def test_the_table_flags_what_may_be_wrong_with_a_clip(
    workspace: Workspace, params: DatasetParams, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(params, workspace)
    crops = read_crops(workspace.crops)
    assert {name: one.flags for name, one in crops.items()} == {
        "found": (),
        "nobody": ("nobody", "whole_image"),
        "unsure": ("low_confidence", "whole_image"),
        "beside": ("whole_image", "outside"),
    }
    assert flag_counts(crops.values()) == {
        "nobody": 1, "low_confidence": 1, "whole_image": 3, "outside": 1, "identity_change": 0,
        "rarely_seen": 0, "crowded": 0,
    }  # fmt: skip
    said = "flags of 4 clips: 1 nobody, 1 low_confidence, 3 whole_image, 1 outside"
    assert said in capsys.readouterr().out


def test_a_table_of_before_is_read_and_its_clips_are_measured(
    workspace: Workspace, params: DatasetParams
) -> None:
    _run(params, workspace)
    now = read_crops(workspace.crops)
    lines = [line.split(",") for line in workspace.crops.read_text().splitlines()]
    # Before it was known whom max_persons drops, and before that, in how many frames anyone is seen.
    for columns, unknown in ((1, {"dropped": None}), (2, {"dropped": None, "seen": None})):
        kept = [",".join([*line[: -1 - columns], line[-1]]) for line in lines]
        workspace.crops.write_text("\n".join(kept) + "\n")
        assert read_crops(workspace.crops)["found"].quality == replace(now["found"].quality, **unknown)
        _run(params, workspace)
        assert read_crops(workspace.crops) == now
    rows = [",".join(line[:7]) for line in lines]
    old = [row for row in rows if "whole image" not in row]
    workspace.crops.write_text("\n".join(old) + "\n")
    assert {name: one.box for name, one in read_crops(workspace.crops).items()} == {"found": now["found"].box}
    assert read_crops(workspace.crops)["found"].quality is None
    _run(params, workspace)
    assert read_crops(workspace.crops) == now


def test_persons_whom_the_pose_stage_dropped_are_counted_and_flagged(
    workspace: Workspace, params: DatasetParams
) -> None:
    _run(params, workspace)
    assert read_crops(workspace.crops)["found"].quality.dropped == 0
    folder, record = workspace.poses, read_records(workspace.poses)[0]
    shutil.copy(folder / "part-00000.h5", folder / "new")
    files = {folder / "new": folder / "part-00000.h5"}
    publish(folder, folder, 0, record.outcomes, files, SLOT_RULES, [("found", 7)])
    _run(params, workspace)
    crops = read_crops(workspace.crops)
    assert crops["found"].quality.dropped == 7 and crops["found"].flags == ("crowded",)
    assert flag_counts(crops.values())["crowded"] == 1
    # Of poses of before, nobody knows.
    shutil.copy(folder / "part-00000.h5", folder / "new")
    publish(folder, folder, 0, record.outcomes, files)
    _run(params, workspace)
    assert read_crops(workspace.crops)["found"].quality.dropped is None


def test_unsure_keypoints_do_not_move_the_box(workspace: Workspace, params: DatasetParams) -> None:
    sure, unsure = _poses(read_manifest(workspace.manifest)[0], _person(100, 60, 140, 160))
    sure[0, 2, 5], unsure[0, 2, 5] = (310, 230), 0.19
    _republish(workspace, {"found": (sure, unsure)})
    _run(params, workspace)
    assert read_crops(workspace.crops)["found"].box == (57, 47, 182, 172)


def _republish(workspace: Workspace, poses: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Reduce the manifest to some clips and replace their poses."""
    clips = [clip for clip in read_manifest(workspace.manifest) if clip.id in poses]
    write_manifest(workspace.manifest, clips)
    folder = workspace.poses
    write_poses(folder / "new", poses)
    outcomes = [Outcome(name, "ok", "changed") for name in poses]
    publish(folder, folder, 0, outcomes, {folder / "new": folder / "part-00000.h5"})


def test_only_clips_whose_poses_or_parameters_changed_are_boxed_again(
    workspace: Workspace, params: DatasetParams
) -> None:
    _run(params, workspace)
    before = read_crops(workspace.crops)
    marked = workspace.crops.read_text().replace("57,47,182,172,persons", "57,47,182,172,by hand")
    workspace.crops.write_text(marked)
    write_counts(workspace.counts("crop"), Counts(4, 0, 0), [workspace.crops])
    _run(params, workspace)
    assert read_crops(workspace.crops)["found"].source == "by hand"
    padded = replace(params, crop=replace(params.crop, padding=0.5))
    _run(padded, workspace)
    after = read_crops(workspace.crops)
    assert after["found"].box == (45, 35, 195, 185)
    assert all(after[name].fingerprint != before[name].fingerprint for name in before)


def test_a_table_that_is_not_as_it_was_written_is_measured_again(
    workspace: Workspace, params: DatasetParams
) -> None:
    _run(params, workspace)
    whole = workspace.crops.read_bytes()
    for damaged in (whole.replace(b"57,47,182,172", b"57,47,183,172"), whole[:-9], b""):
        workspace.crops.write_bytes(damaged)
        _run(params, workspace)
        assert workspace.crops.read_bytes() == whole
    workspace.crops.write_bytes(whole.replace(b"57,47,182,172", b"57,47,183,172"))
    workspace.counts("crop").write_text("{}")
    _run(params, workspace)
    assert workspace.crops.read_bytes() == whole


def test_the_clips_of_a_damaged_part_fail_and_name_it(workspace: Workspace, params: DatasetParams) -> None:
    part = workspace.poses / "part-00000.h5"
    part.write_bytes(bytes(part.stat().st_size))
    with pytest.raises(
        HarcacheError, match=r"crop: 4 of 4 failed.*part-00000\.h5: clip 'beside' cannot be read"
    ):
        _run(params, workspace)
    assert [row[1] for row in read_failures(workspace.failures("crop"))] == ["failed"] * 4


def test_a_crop_needs_the_stage_before_it(workspace: Workspace, params: DatasetParams) -> None:
    (workspace.poses / "part-00000.json").unlink()
    with pytest.raises(HarcacheError, match=r"poses lacks 4 of 4 clips, first 'found'; run its stage first"):
        _run(params, workspace)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["C"], exclude_characters="/\\"), min_size=1, max_size=9),
        st.tuples(*[st.integers(-999, 999)] * 2, *[st.integers(1000, 1999)] * 2),
        max_size=4,
    )
)
def test_the_table_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, boxes: dict[str, tuple[int, int, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("crops") / "crops.csv"
    found = [None, Quality(1, 0.25, 0.5, 2, 0.75), Quality(1, 0.25, 0.5, 2, 0.75, 3)]
    crops = [
        Crop(n, box, "whole image: a, b", "ff", found[box[0] % 3], "ab" * (box[1] % 2))
        for n, box in boxes.items()
    ]
    write_crops(path, crops)
    assert read_crops(path) == {one.id: one for one in crops}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"crops\.csv, line 1: no column 'id': expected id,x1.*; delete it and run the crop stage again"),
        ("id,x1,y1,x2,y2,source\n", "line 1: no column 'fingerprint': expected id,x1"),
        (_HEADER + _ROW + "b,1,2,3.5,4,persons,ff\n", r"line 3: .*'3\.5'; delete it and run the crop stage"),
        (_HEADER + _ROW + "b,1,2,30,40,per", "line 3: wrong number of columns"),
        (_HEADER + _ROW + "b,1,2,30,40,persons,ff,ff\n", "line 3: wrong number of columns"),
        (_HEADER + _ROW + "b,3,2,3,40,persons,ff\n", "line 3: the box 3 2 3 40 is empty"),
        ((_HEADER + _ROW).encode() + b"\xff", "line 3: byte 0xff is not UTF-8"),
    ],
)
def test_a_damaged_table_is_named_with_its_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "crops.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(HarcacheError, match=message):
        read_crops(path)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarcacheError, match=r"crops\.csv is missing; run the crop stage, which writes it"):
        read_crops(tmp_path / "crops.csv")


def test_the_demos_boxes_hold_its_performers(demo: Workspace) -> None:
    truth = read_truth(demo.videos)
    assert truth is not None
    crops = read_crops(demo.crops)
    assert crops.keys() == truth.keys()
    for name, one in crops.items():
        assert one.source == "persons"
        x1, y1, x2, y2 = one.box
        x, y = truth[name].keypoints[..., 0], truth[name].keypoints[..., 1]
        assert (x >= x1).all() and (x < x2).all() and (y >= y1).all() and (y < y2).all()

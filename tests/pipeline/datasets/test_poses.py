"""A file of imported poses is a dataset by itself: its clips, labels and splits, up to the heatmaps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harcache import cache
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_classes, read_manifest
from harcache.pipeline.params import (
    DatasetParams,
    HeatmapParams,
    ImportedPoseParams,
    IndexParams,
    KinectPoseParams,
    NoDetectParams,
)
from harcache.pipeline.skeletons.imported import ImportedPose, write_imported_poses
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import Counts, read_failures
from harcache.stages import crop, detect, heatmap, index, pose, rgb
from harcache.stages.shared.workspace import Workspace
from harcache.stages.training.samples import check_stores, split_clips


def _pose(id: str, label: int | None = 1, size: tuple[int, int] | None = (240, 320)) -> ImportedPose:
    keypoints = np.random.default_rng(0).uniform(50, 200, (1, 9, 17, 2)).astype(np.float32)
    return ImportedPose(id, keypoints, np.ones((1, 9, 17), np.float32), None, size, label)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A dataset without a folder of videos."""
    monkeypatch.chdir(tmp_path)
    return Workspace.under(tmp_path, "small", tmp_path / "videos", max_failed=1.0)


def _params(params: DatasetParams) -> DatasetParams:
    return replace(
        params,
        index=IndexParams("poses"),
        detect=NoDetectParams("none"),
        pose=ImportedPoseParams("import", "poses.h5", 2),
        heatmap=HeatmapParams(shard_rows=64, size=16),
    )


def _index(
    workspace: Workspace,
    params: DatasetParams,
    poses: Sequence[ImportedPose],
    splits: Mapping[str, Sequence[str]],
) -> Counts:
    write_imported_poses(Path("poses.h5"), poses, splits)
    with Engine(workers=0) as engine:
        return index.run(_params(params), workspace, engine)


def test_poses_alone_become_heatmaps_with_labels_and_splits(
    workspace: Workspace, params: DatasetParams
) -> None:
    splits = {"xsub_train": ["a", "b"], "xsub_val": ["c"], "train1": ["c"], "test1": ["a"], "train": ["b"]}
    assert _index(workspace, params, [_pose("b", 0), _pose("a", 2), _pose("c", None)], splits) == Counts(
        3, 0, 0
    )
    a, b, c = read_manifest(workspace.manifest)
    assert (a.id, a.frames, a.height, a.width) == ("a", 9, 240, 320)
    assert a.splits == (("split1", "test"), ("xsub", "train"))
    assert b.splits == (("default", "train"), ("xsub", "train"))
    assert c.splits == (("split1", "train"), ("xsub", "test"))
    assert [clip.label("xsub") for clip in (a, b, c)] == [2, 0, None]
    assert read_classes(workspace.classes)["split1"] == ["0", "1", "2"]
    with Engine(workers=0) as engine:
        for stage in (detect, pose, crop, heatmap):
            assert stage.run(_params(params), workspace, engine) == Counts(3, 0, 0)
        with pytest.raises(HarcacheError, match="has no videos: only the pose stream can be trained"):
            rgb.run(_params(params), workspace, engine)
    check_stores(_params(params), workspace)
    train = replace(params.train, protocol="xsub")
    assert [clip.id for clip in split_clips(workspace, train, "train")] == ["a", "b"]
    store = cache.open(workspace.heatmaps)
    assert store.ids == ("a", "b", "c") and store.heatmaps("a").any()


def test_clips_and_splits_that_can_not_be_are_named(workspace: Workspace, params: DatasetParams) -> None:
    poses = [_pose("a"), _pose("folder/b"), _pose("c", size=None), _pose("d")]
    splits = {"everything": ["a"], "xsub_train": ["d"], "xsub_val": ["d"]}
    assert _index(workspace, params, poses, splits) == Counts(1, 0, 4)
    failed = {id: reason for id, _, reason in read_failures(workspace.failures("index"))}
    assert "clip id 'folder/b' can't be a file name" in failed["folder/b"]
    assert failed["c"] == "its entry has no img_shape, which the crop needs: import it with one"
    assert failed["split everything"] == "expected a name like xsub_train, train1 or test"
    assert failed["d"] == "clip 'd' has several splits in xsub: expected one of train, test"
    assert read_manifest(workspace.manifest)[0].label("xsub") == 1


def test_the_layout_needs_imported_poses(workspace: Workspace, params: DatasetParams) -> None:
    kinect = replace(_params(params), pose=KinectPoseParams("kinect", "skeletons", 2))
    with Engine(workers=0) as engine, pytest.raises(HarcacheError, match=r"but pose\.backend is 'kinect'"):
        index.run(kinect, workspace, engine)

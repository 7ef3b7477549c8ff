"""Imported poses come back as they were, clip by clip, and no damaged or foreign file passes for them."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from harcache.pipeline.skeletons.errors import PoseFileError
from harcache.pipeline.skeletons.imported import ImportedPose, ImportedPoses, write_imported_poses

_RNG = np.random.default_rng(0)


def _pose(id: str, persons: int, frames: int, joints: int = 17, in_space: bool = False) -> ImportedPose:
    keypoints = _RNG.uniform(0, 500, (persons, frames, joints, 2)).astype(np.float32)
    keypoints[:, ::3] = np.nan
    scores = _RNG.uniform(0, 1, (persons, frames, joints)).astype(np.float32)
    positions = _RNG.normal(size=(persons, frames, joints, 3)).astype(np.float32) if in_space else None
    return ImportedPose(id, keypoints, scores, positions, (240, 320), persons)


def _assert_same(found: ImportedPose, expected: ImportedPose) -> None:
    assert (found.id, found.image_size, found.label) == (expected.id, expected.image_size, expected.label)
    np.testing.assert_array_equal(found.keypoints, expected.keypoints)
    np.testing.assert_array_equal(found.scores, expected.scores)
    if expected.positions is None:
        assert found.positions is None
    else:
        np.testing.assert_array_equal(found.positions, expected.positions)


@pytest.mark.parametrize("in_space", [False, True])
def test_poses_come_back_in_any_order(tmp_path: Path, in_space: bool) -> None:
    # 9,000 rows and more are written in several goes.
    poses = [_pose(f"é {i}", i % 3, 300 + i, 25, in_space) for i in range(40)]
    poses.append(
        ImportedPose("unknown", *(getattr(poses[1], name) for name in ("keypoints", "scores", "positions")))
    )
    path = tmp_path / "poses.h5"
    assert write_imported_poses(path, iter(poses), {"train": ["é 1", "gone"], "test": []}) == 41
    found = ImportedPoses(path)
    assert found.ids == [pose.id for pose in poses] and found.frames["é 7"] == 307
    assert found.splits == {"train": ["é 1", "gone"], "test": []}
    for pose in reversed(poses):
        _assert_same(found.read(pose.id), pose)
        assert found.digests[pose.id] == pose.digest
    assert len(set(found.digests.values())) == 41


def test_a_file_that_fails_half_way_is_none(tmp_path: Path) -> None:
    def poses():
        yield _pose("a", 1, 3)
        raise PoseFileError("no more")

    with pytest.raises(PoseFileError, match="no more"):
        write_imported_poses(tmp_path / "poses.h5", poses(), {})
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_in_a_pose_is_found_and_named(tmp_path: Path) -> None:
    path = tmp_path / "poses.h5"
    write_imported_poses(path, [_pose("a", 1, 50)], {})
    with h5py.File(path) as file:
        start = file["keypoints"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[start + 100] ^= 4
    path.write_bytes(content)
    with pytest.raises(PoseFileError, match=r"poses\.h5: clip 'a' cannot be read .*; import its poses again"):
        ImportedPoses(path).read("a")


@pytest.mark.parametrize("kept", [0, 100, 2000])
def test_a_cut_off_file_is_found(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "poses.h5"
    write_imported_poses(path, [_pose("a", 1, 50)], {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(PoseFileError, match=r"poses\.h5 cannot be read"):
        ImportedPoses(path)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(PoseFileError, match=r"gone\.h5 is missing; make it by 'harcache poses import'"):
        ImportedPoses(tmp_path / "gone.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["format"] = "harcache.poses/1"
    with pytest.raises(
        PoseFileError, match=r"found format harcache\.poses/1, expected harcache\.imported_poses/1"
    ):
        ImportedPoses(tmp_path / "other.h5")

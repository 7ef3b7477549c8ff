"""PYSKL's pickles: what goes in comes out, what is bad in them is named, and memory stays small."""

import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harcache.cache.annotations import write_poses
from harcache.commands.poses import export_poses, import_poses
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip, write_manifest
from harcache.pipeline.skeletons.formats.pyskl import annotation_of, write_annotations
from harcache.pipeline.skeletons.imported import ImportedPoses
from harcache.pipeline.work.outcomes import Counts, read_failures
from harcache.pipeline.work.parts import Outcome, publish
from harcache.stages.shared.units import part_file
from harcache.stages.shared.workspace import Workspace


def _entry(
    id: str = "a", persons: int = 1, frames: int = 4, joints: int = 17, **other: Any
) -> dict[str, Any]:
    rng = np.random.default_rng(frames)
    return {
        "frame_dir": id,
        "label": 3,
        "img_shape": (240, 320),
        "original_shape": (240, 320),
        "total_frames": frames,
        "keypoint": rng.uniform(0, 240, (persons, frames, joints, 2)).astype(np.float16),
        "keypoint_score": rng.uniform(0.1, 1, (persons, frames, joints)).astype(np.float16),
    } | other


def _import(folder: Path, content: Any, protocol: int = 4) -> Counts:
    (folder / "in.pkl").write_bytes(pickle.dumps(content, protocol))
    return import_poses(folder / "in.pkl", folder / "out.h5")


def _assert_same(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            if isinstance(value, np.ndarray):
                assert one[key].shape == value.shape
                np.testing.assert_array_equal(one[key], value)
            else:
                assert one[key] == value


@st.composite
def _entries(draw: st.DrawFn) -> list[dict[str, Any]]:
    ids = draw(
        st.lists(
            st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=1, unique=True, max_size=5
        )
    )
    joints, kind = draw(st.integers(1, 4)), draw(st.sampled_from([np.float16, np.float32]))
    number = st.one_of(st.just(0.0), st.floats(-500, 2000, width=16))
    entries = []
    for id in ids:
        shape = (draw(st.integers(0, 3)), draw(st.integers(1, 4)), joints)
        entry = _entry(id, *shape, label=draw(st.integers(0, 400)))
        entry["keypoint"] = draw(hnp.arrays(kind, (*shape, 2), elements=number))
        entry["keypoint_score"] = draw(hnp.arrays(kind, shape, elements=st.floats(0, 1, width=16)))
        entries.append(entry)
    return entries


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=_entries(), protocol=st.integers(2, 5), data=st.data())
def test_entries_and_splits_come_out_as_they_went_in(
    tmp_path: Path, entries: list[dict[str, Any]], protocol: int, data: st.DataObject
) -> None:
    ids = st.lists(st.sampled_from([entry["frame_dir"] for entry in entries]))
    splits = data.draw(st.dictionaries(st.text(max_size=9), ids, max_size=3))
    assert _import(tmp_path, {"split": splits, "annotations": entries}, protocol) == Counts(
        len(entries), 0, 0
    )
    poses = ImportedPoses(tmp_path / "out.h5")
    write_annotations(tmp_path / "out.pkl", (annotation_of(poses.read(id)) for id in poses.ids), poses.splits)
    found = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert found["split"] == splits
    _assert_same(found["annotations"], entries)


def test_skeletons_in_space_come_out_as_they_went_in(tmp_path: Path) -> None:
    skeleton = np.random.default_rng(0).normal(size=(2, 5, 25, 3)).astype(np.float16)
    skeleton[1, :2] = 0  # who is not there yet
    entry = {"frame_dir": "a", "label": 0, "total_frames": 5, "keypoint": skeleton}
    _import(tmp_path, {"split": {}, "annotations": [entry]})
    pose = ImportedPoses(tmp_path / "out.h5").read("a")
    assert np.isnan(pose.positions[1, :2]).all() and np.isnan(pose.keypoints).all()
    assert not pose.scores[1, :2].any() and (pose.scores[0] == 1).all()
    _assert_same([annotation_of(pose)], [entry])


def test_a_list_of_entries_alone_is_taken(tmp_path: Path) -> None:
    assert _import(tmp_path, [_entry("a"), _entry("b", 2)]) == Counts(2, 0, 0)
    assert ImportedPoses(tmp_path / "out.h5").splits == {}


def test_persons_who_are_not_there_are_nan(tmp_path: Path) -> None:
    entry = _entry(persons=2)
    entry["keypoint"][1, 2:] = entry["keypoint_score"][1, 2:] = 0
    entry["keypoint_score"][0, 0] = 0  # unsure, but somewhere
    _import(tmp_path, [entry])
    keypoints = ImportedPoses(tmp_path / "out.h5").read("a").keypoints
    assert np.isnan(keypoints[1, 2:]).all() and np.isfinite(keypoints[1, :2]).all()
    assert np.isfinite(keypoints[0]).all()


def _with(array: str, place: Any, value: float) -> dict[str, Any]:
    entry = _entry("bad")
    entry[array][place] = value
    return entry


_BAD = {
    "no entry": (17, "it has no frame_dir"),
    "no id": ({"label": 1}, "it has no frame_dir that can be an id"),
    "an id with control characters": (_entry("a\nb"), "it has no frame_dir that can be an id"),
    "an id that is no text": (_entry(5), "it has no frame_dir"),
    "an id that comes twice": (_entry("good"), "its frame_dir comes twice; the first is kept"),
    "no poses": ({"frame_dir": "bad"}, "keypoint is missing"),
    "poses as lists": (_entry("bad", keypoint=[[1.0]]), "keypoint is no array"),
    "too few axes": (_entry("bad", keypoint=np.zeros((4, 17, 2))), r"keypoint is \(4, 17, 2\); expected"),
    "four coordinates": (_entry("bad", keypoint=np.zeros((1, 4, 17, 4))), r"keypoint is \(1, 4, 17, 4\)"),
    "no frames": (_entry("bad", frames=0), r"keypoint is \(1, 0, 17, 2\); .* at least one frame"),
    "other joints": (_entry("bad", joints=18), "it has 18 joints in the picture, the first entry 17"),
    "scores of another shape": (
        _entry("bad", keypoint_score=np.zeros((1, 4, 16))),
        r"keypoint_score is \(1, 4, 16\); expected \(1, 4, 17\)",
    ),
    "no scores": (_entry("bad", keypoint_score=None), "keypoint_score is missing"),
    "truth values": (_entry("bad", keypoint=np.ones((1, 4, 17, 2), bool)), "keypoint holds bool"),
    "NaN": (_with("keypoint", (0, 1, 2, 0), np.nan), "keypoint holds NaN or infinite values"),
    "an infinite score": (_with("keypoint_score", (0, 1, 2), np.inf), "keypoint_score holds NaN or infinite"),
    "more than float32 holds": (_entry("bad", keypoint=np.full((1, 4, 17, 2), 1e300)), "holds NaN or inf"),
    "a wrong frame count": (_entry("bad", total_frames=9), "total_frames is 9, but keypoint has 4"),
    "a negative label": (_entry("bad", label=-1), "label is no whole number from 0 on"),
    "a label of a billion classes": (_entry("bad", label=10**9), "no whole number from 0 on, under"),
    "a label too large for its table": (_entry("bad", label=2**80), "label is no whole number"),
    "a label that is text": (_entry("bad", label="wave"), "label is no whole number"),
    "no image": (_entry("bad", img_shape=(0, 320)), "img_shape is no height and width"),
    "an image of 400 digits": (_entry("bad", img_shape=(10**400, 320)), "img_shape is no height and width"),
    "5000 digits of frames": (_entry("bad", total_frames=10**5000), "total_frames is a number of 16610 bits"),
    "a list of frames": (_entry("bad", total_frames=[[9] * 99] * 99), r"frames is \[\[9, 9, 9, \.\.\.\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", _BAD)
def test_a_bad_entry_is_recorded_and_the_others_are_kept(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entry, message = _BAD[case]
    assert _import(tmp_path, [_entry("good"), entry, _entry("last")]) == Counts(2, 0, 1)
    assert ImportedPoses(tmp_path / "out.h5").ids == ["good", "last"]
    ((id, status, reason),) = read_failures(tmp_path / "out.failures.csv")
    assert status == "failed" and id in ("bad", "good", "entry 1")
    assert re.search(message, reason)
    printed = capsys.readouterr().out
    assert "2 ok, 1 failed of 3 entries" in printed and reason in printed


def test_a_bad_split_is_recorded_and_the_others_are_kept(tmp_path: Path) -> None:
    splits = {"train": ["a"], "test": "a", "val": [1]}
    assert _import(tmp_path, {"split": splits, "annotations": [_entry()]}) == Counts(1, 0, 2)
    assert ImportedPoses(tmp_path / "out.h5").splits == {"train": ["a"]}
    failed = [
        ("split test", "failed", "expected a list of ids"),
        ("split val", "failed", "expected a list of ids"),
    ]
    assert read_failures(tmp_path / "out.failures.csv") == failed


@pytest.mark.parametrize("content", [{}, [], {"annotations": {}}, 5, {"annotations": []}])
def test_a_pickle_without_entries_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(HarcacheError, match=r"in\.pkl holds no list of annotations"):
        _import(tmp_path, content)


def test_a_pickle_without_a_good_entry_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(HarcacheError, match="has no entry that can be used; first bad: total_frames is 9"):
        _import(tmp_path, [_entry("bad", total_frames=9)])
    assert [path.name for path in tmp_path.iterdir()] == ["in.pkl"]


def test_entries_that_all_share_one_array_are_refused(tmp_path: Path) -> None:
    entry = _entry("a", persons=1, frames=2000)
    entries = [entry | {"frame_dir": f"a{number}"} for number in range(200)]
    with pytest.raises(
        HarcacheError, match=r"in\.pkl: its entries share their arrays, so they are not those"
    ):
        _import(tmp_path, entries)
    assert not (tmp_path / "out.h5").exists()
    assert _import(tmp_path, entries[:3]) == Counts(3, 0, 0)


def test_a_pickle_takes_less_memory_than_its_size(tmp_path: Path) -> None:
    keypoints, scores = np.ones((2, 3000, 17, 2), np.float16), np.ones((2, 3000, 17), np.float16)
    entries = [
        _entry(f"clip {i}", frames=3000, keypoint=keypoints + np.float16(i), keypoint_score=scores + 0)
        for i in range(250)
    ]
    with (tmp_path / "in.pkl").open("wb") as file:
        pickle.dump({"split": {}, "annotations": entries}, file)
    size = (tmp_path / "in.pkl").stat().st_size
    assert size > 150e6
    program = (
        "import sys; from pathlib import Path; from harcache.commands import poses\n"
        # Unlike getrusage's, this one does not begin with the parent's memory.
        "def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) * 1024\n"
        "before = peak(); poses.import_poses(Path(sys.argv[1]), Path(sys.argv[2])); print(before, peak())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "in.pkl"), str(tmp_path / "out.h5")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, peak = map(int, done.stdout.split()[-2:])
    # The programs and libraries themselves are most of it.
    assert peak - before < 0.3 * size and peak < 2 * size
    assert "poses: read: " in done.stderr and "poses: write: 250/250 entries" in done.stderr


def _posed(project: Path, clips: Sequence[Clip]) -> Workspace:
    """A workspace with poses of the clips but for the last one, which failed."""
    workspace = Workspace.under(project, "small", project / "videos")
    write_manifest(workspace.manifest, clips)
    workspace.poses.mkdir()
    rng = np.random.default_rng(0)
    poses = {}
    for clip in clips[:-1]:
        keypoints = rng.uniform(0, 99, (2, clip.frames, 17, 2)).astype(np.float32)
        keypoints[1, 1:] = np.nan
        poses[clip.id] = keypoints, np.where(np.isnan(keypoints[..., 0]), 0, 0.7).astype(np.float32)
    write_poses(workspace.poses / "new", poses)
    outcomes = [Outcome(clip.id, "ok", "x") for clip in clips[:-1]] + [Outcome(clips[-1].id, "failed", "x")]
    publish(
        workspace.poses,
        workspace.poses,
        0,
        outcomes,
        {workspace.poses / "new": part_file(workspace.poses, 0)},
    )
    return workspace


def _clip(id: str, labels: dict[str, int], splits: dict[str, str]) -> Clip:
    return Clip(
        id,
        f"{id}.mp4",
        0,
        5,
        240,
        320,
        30.0,
        1,
        1,
        "d",
        labels=tuple(labels.items()),
        splits=tuple(splits.items()),
    )


def test_a_datasets_poses_go_out_with_labels_and_splits_and_come_in_again(tmp_path: Path) -> None:
    both = {"xsub": 4, "xview": 4}
    clips = [
        _clip("a", both, {"xsub": "train", "xview": "test"}),
        _clip("b", both, {"xsub": "test"}),
        _clip("lost", both, {"xsub": "test"}),
    ]
    workspace = _posed(tmp_path, clips)
    assert export_poses(workspace, tmp_path / "all.pkl") == 2
    found = pickle.loads((tmp_path / "all.pkl").read_bytes())
    assert found["split"] == {"xsub_train": ["a"], "xview_test": ["a"], "xsub_test": ["b"]}
    first = found["annotations"][0]
    assert (first["frame_dir"], first["label"], first["total_frames"]) == ("a", 4, 5)
    assert first["img_shape"] == first["original_shape"] == (240, 320)
    assert not first["keypoint"][1, 1:].any() and not first["keypoint_score"][1, 1:].any()
    assert import_poses(tmp_path / "all.pkl", tmp_path / "all.h5") == Counts(2, 0, 0)
    assert np.isnan(ImportedPoses(tmp_path / "all.h5").read("a").keypoints[1, 1:]).all()


def test_labels_that_differ_by_protocol_must_be_chosen(tmp_path: Path) -> None:
    clips = [_clip(id, {"cs": 4, "cv2": 0}, {"cs": "train", "cv2": "val"}) for id in "abc"]
    workspace = _posed(tmp_path, clips)
    with pytest.raises(
        HarcacheError, match=r"clip 'a' has other labels in other protocols; .*--protocol: cs, cv2"
    ):
        export_poses(workspace, tmp_path / "all.pkl")
    export_poses(workspace, tmp_path / "cv2.pkl", "cv2")
    found = pickle.loads((tmp_path / "cv2.pkl").read_bytes())
    assert found["split"] == {"cv2_val": ["a", "b"]} and found["annotations"][0]["label"] == 0
    with pytest.raises(HarcacheError, match="no clip has the protocol 'cv3'; known: cs, cv2"):
        export_poses(workspace, tmp_path / "cv3.pkl", "cv3")


def test_a_pickle_that_fails_half_way_is_none(tmp_path: Path) -> None:
    def annotations():
        yield {"frame_dir": "a"}
        raise HarcacheError("no more")

    with pytest.raises(HarcacheError, match="no more"):
        write_annotations(tmp_path / "out.pkl", annotations(), {})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_dataset_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(HarcacheError, match=r"manifest\.csv is missing"):
        export_poses(Workspace.under(tmp_path, "gone", tmp_path), tmp_path / "out.pkl")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10))
    with pytest.raises(HarcacheError, match=r"has 0 MB free, out\.h5 may need \d+; make room"):
        _import(tmp_path, [_entry()])
    assert [path.name for path in tmp_path.iterdir()] == ["in.pkl"]


def test_a_pickle_names_numpys_module_as_numpy_1_knows_it(tmp_path: Path) -> None:
    write_annotations(tmp_path / "out.pkl", [{"keypoint": np.zeros((1, 2))}], {})
    assert b"numpy._core" not in (tmp_path / "out.pkl").read_bytes()


def test_the_file_that_is_read_is_not_replaced_by_the_result(tmp_path: Path) -> None:
    path = tmp_path / "in.pkl"
    path.write_bytes(pickle.dumps([]))
    (tmp_path / "out.h5").symlink_to(path)
    for out in (path, tmp_path / "out.h5"):
        with pytest.raises(
            HarcacheError, match="is the file that is read, so it would be lost; give the resu"
        ):
            import_poses(path, out)
    assert pickle.loads(path.read_bytes()) == []

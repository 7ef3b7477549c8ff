"""Kinect's skeletons: joints where the files say, people before furniture, and every damage named."""

from pathlib import Path

import numpy as np
import pytest

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.skeletons.formats.kinect import find_skeletons, read_missing, read_skeletons
from tests.kinect_files import FIGURE, body, skeleton_text, write_mat, write_skeleton

# Two numbers that a float could not tell apart, as NTU's are.
_ONE, _OTHER = 72057594037931101, 72057594037931102


def _read(path: Path, frames: list[dict[int, np.ndarray]]):
    write_skeleton(path, frames)
    return read_skeletons(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of NTU's name."""
    return tmp_path / "S001C001P001R001A001.skeleton"


def test_joints_pixels_and_states_are_the_files(path: Path) -> None:
    found = _read(path, [{_ONE: body(0.1 * t, state=t)} for t in range(3)])
    assert found.image_size == (1080, 1920)
    assert found.positions.shape == (1, 3, 25, 3) and found.positions.dtype == np.float32
    np.testing.assert_allclose(found.positions[0, 1], FIGURE + np.array([0.1, 0, 3]), atol=1e-5)
    np.testing.assert_allclose(found.keypoints[0, 2, :, 0], 960 + 300 * (FIGURE[:, 0] + 0.2), rtol=1e-5)
    np.testing.assert_array_equal(found.scores[0, :, 0], [0, 0.5, 1])


def test_who_is_not_seen_is_nan_and_the_frame_stays(path: Path) -> None:
    lost = np.zeros((25, 12))  # what the sensor writes of someone it has lost
    found = _read(path, [{}, {_ONE: body(0)}, {_ONE: lost}, {}, {_ONE: body(0.2)}, {}])
    there = np.isfinite(found.positions[0, :, 0, 0])
    assert there.tolist() == [False, True, False, False, True, False]
    assert np.isnan(found.keypoints[0, ~there]).all() and not found.scores[0, ~there].any()


def test_a_recording_of_nobody_has_no_persons(path: Path) -> None:
    assert _read(path, [{}] * 7).positions.shape == (0, 7, 25, 3)


def test_two_persons_are_two_and_the_most_present_comes_first(path: Path) -> None:
    frames = [{_OTHER: body(1), _ONE: body(-1)} if t > 5 else {_ONE: body(-1)} for t in range(40)]
    found = _read(path, frames)
    assert np.nanmean(found.positions[..., 0], axis=(1, 2)).round().tolist() == [-1, 1]
    assert np.isnan(found.positions[1, :6]).all() and np.isfinite(found.positions[1, 6:]).all()


def test_among_those_as_present_the_one_who_moves_comes_first(path: Path) -> None:
    found = _read(path, [{_ONE: body(-1), _OTHER: body(1 + 0.02 * t)} for t in range(40)])
    assert (np.nanmean(found.positions[..., 0], axis=(1, 2)) > 0).tolist() == [True, False]


def test_a_person_who_gets_another_number_is_one_person(path: Path) -> None:
    frames = [{_ONE if t < 15 else _OTHER: body(0.01 * t)} for t in range(40)]
    found = _read(path, frames)
    assert len(found.positions) == 1 and np.isfinite(found.positions).all()


def test_furniture_and_flickers_are_no_persons_unless_nobody_else_is_there(path: Path) -> None:
    wide = body(0, height=0.1)
    persons = _read(path, [{1: body(-1), 2: wide} | ({3: body(2)} if t < 11 else {}) for t in range(40)])
    np.testing.assert_allclose(persons.positions[:, 0, 0, 0], [-1], atol=1e-5)
    assert len(_read(path, [{2: wide}] * 40).positions) == 1
    assert len(_read(path, [{3: body(2)}] * 5).positions) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_joint_without_a_pixel_keeps_its_place_in_space(path: Path, value: float) -> None:
    values = body(0)
    values[3, 5] = value
    values[4, 2] = value
    found = _read(path, [{_ONE: values}])
    assert np.isnan(found.keypoints[0, 0, 3]).all() and np.isfinite(found.positions[0, 0, 3]).all()
    assert np.isnan(found.positions[0, 0, 4]).all() and found.scores[0, 0, 4] == 0
    assert np.isfinite(found.positions[0, 0, 5:]).all()


_TEXT = skeleton_text([{_ONE: body(0)}, {_ONE: body(0), _OTHER: body(1)}, {}])
_LINES = _TEXT.split("\n")


def _changed(line: int, text: str) -> str:
    return "\n".join([*_LINES[: line - 1], text, *_LINES[line:]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the number of frames is ''"),
        ("0\n", "has no frames"),
        ("999999999\n0\n", "says 999999999 frames but has 3 lines"),
        ("many\n", "line 1: the number of frames is 'many'"),
        ("-3\n", "line 1: the number of frames is '-3'"),
        ("²\n", "is no text"),
        ("9" * 5000 + "\n", "line 1: the number of frames is '999"),
        ("50001\n2\n" + "1 0 1 1 0 0 0 0 0 2\n25\n" + ("0 " * 12 + "\n") * 25
         + "2 0 1 1 0 0 0 0 0 2\n25\n" + ("0 " * 12 + "\n") * 25 + "0\n" * 50000, "2 bodies in 50001 frames"),
        (_changed(1, "4"), r"the number of bodies of frame 3 is ''"),
        (_changed(1, "2"), "goes on after its 2 frames"),
        (_changed(2, "2"), "line .*: .* values, expected 10"),
        (_changed(2, "0"), "the number of bodies of frame 1 is '72057594037931101 0"),
        (_changed(3, "1 2 3"), r"line 3: one of the last 1 lines has 3 values, expected 10"),
        (_changed(4, "20"), "line 4: 20 joints, expected 25"),
        (_changed(9, "1 2 3"), "line 29: one of the last 25 lines has 3 values, expected 12"),
        (_changed(9, " ".join(["x"] * 12)), "line 29: in the last 25 lines is no number"),
        (skeleton_text([{1: body(0)}]).replace("\n1\n1 0", "\n2\n1 0") + skeleton_text([{1: body(0)}])[4:],
         "body 1 comes twice in frame 0"),
    ],
)  # fmt: skip
def test_a_text_of_another_form_is_refused_with_its_line(path: Path, text: str, message: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(HarcacheError, match=message) as error:
        read_skeletons(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("tenths", range(10))
def test_a_cut_off_text_is_refused_wherever_it_was_cut(path: Path, tenths: int) -> None:
    path.write_text(_TEXT[: len(_TEXT) * tenths // 10])
    with pytest.raises(HarcacheError, match=r"\.skeleton, line \d+: .*; get the file anew or remove it"):
        read_skeletons(path)


def test_utds_joints_are_in_space_alone(tmp_path: Path) -> None:
    positions = np.random.default_rng(0).normal(size=(20, 3, 50))
    positions[2, 1, 7] = np.nan
    write_mat(tmp_path / "a1_s1_t1_skeleton.mat", positions)
    found = read_skeletons(tmp_path / "a1_s1_t1_skeleton.mat")
    np.testing.assert_array_equal(found.positions[0, 9], positions[..., 9].astype(np.float32))
    assert found.image_size is None and np.isnan(found.keypoints).all()
    assert found.scores.sum() == 50 * 20 - 1 and found.scores[0, 7, 2] == 0


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("skel", np.zeros((20, 3, 5)), "d_skel is nothing"),
        ("d_skel", np.zeros((25, 3, 5)), r"d_skel is float64 \(25, 3, 5\); expected float \(20, 3, frames\)"),
        ("d_skel", np.zeros((20, 3, 0)), "expected float"),
        ("d_skel", np.zeros((20, 3)), "expected float"),
        ("d_skel", np.full((20, 3, 5), "a"), "expected float"),
        ("d_skel", np.array([[{}]], object), "expected float"),
    ],
)
def test_another_matlab_file_is_refused(tmp_path: Path, name: str, values: np.ndarray, message: str) -> None:
    write_mat(tmp_path / "a.mat", values, name)
    with pytest.raises(HarcacheError, match=rf"a\.mat: .*{message}"):
        read_skeletons(tmp_path / "a.mat")


@pytest.mark.parametrize("tenths", range(10))
def test_a_cut_off_matlab_file_is_refused(tmp_path: Path, tenths: int) -> None:
    path = tmp_path / "a.mat"
    write_mat(path, np.random.default_rng(0).normal(size=(20, 3, 50)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * tenths // 10])
    with pytest.raises(
        HarcacheError, match=r"a\.mat( is no MATLAB file that can be read|: d_skel is nothing)"
    ):
        read_skeletons(path)


def test_skeletons_are_found_behind_links_to_folders(tmp_path: Path) -> None:
    write_skeleton(tmp_path / "elsewhere" / "S001C001P001R001A001.skeleton", [{}])
    (tmp_path / "skeletons").mkdir()
    (tmp_path / "skeletons" / "s1").symlink_to(tmp_path / "elsewhere")
    assert set(find_skeletons(tmp_path / "skeletons")) == {"S001C001P001R001A001"}


def test_skeletons_are_found_by_their_clips_and_lists_of_missing_ones_are_read(tmp_path: Path) -> None:
    write_skeleton(tmp_path / "s1" / "S001C001P001R001A001.skeleton", [{}])
    write_mat(tmp_path / "a1_s1_t1_skeleton.mat", np.zeros((20, 3, 1)))
    names = "NTU samples:\nS001C002P005R002A008\nS001C002P006R001A008\n"
    (tmp_path / "NTU_RGBD_samples_with_missing_skeletons.txt").write_text(names)
    assert set(find_skeletons(tmp_path)) == {"S001C001P001R001A001", "a1_s1_t1"}
    assert read_missing(tmp_path) == {"S001C002P005R002A008", "S001C002P006R001A008"}
    with pytest.raises(HarcacheError, match=r"has no \.skeleton or \.mat files"):
        find_skeletons(tmp_path / "elsewhere")

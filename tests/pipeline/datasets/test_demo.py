"""The demo is the same from the same seed, its truth is where the figures are, and its pairs are pairs."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.datasets.demo import (
    DemoSpec,
    _clips,
    _DemoClip,
    _partner,
    _scene,
    _video_path,
    generate_demo,
    object_pairs,
)
from harcache.pipeline.datasets.drawn_figures import motion
from harcache.pipeline.datasets.drawn_figures.figures import render
from harcache.pipeline.datasets.drawn_figures.scenes import Scene, scene_truth
from harcache.pipeline.datasets.registry import scan
from harcache.pipeline.datasets.truth import read_truth
from harcache.pipeline.params import IndexParams
from harcache.pipeline.video.frames import probe, read_frames

_SMALL = DemoSpec(seed=2, performers=(1, 2), cameras=1, actions=(5, 11))
_TAKES = st.builds(
    _DemoClip,
    setup=st.integers(1, 3),
    camera=st.integers(1, 3),
    performer=st.sampled_from(DemoSpec().performers),
    repetition=st.integers(1, 3),
    action=st.integers(1, 12),
)
_SPECS = st.builds(DemoSpec, seed=st.integers(0, 2**31))
_L_HIP, _L_WRIST, _R_WRIST = motion.L_HIP, motion.L_WRI, motion.R_WRI


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos with their truth. No test changes them."""
    root = tmp_path_factory.mktemp("demo")
    assert generate_demo(root, _SMALL, workers=1) == 4
    return root


@pytest.fixture
def own(small: Path, tmp_path: Path) -> Path:
    """A copy of the four videos, for one test to change."""
    for path in small.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def _contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


def _same_truth(first: Path, second: Path) -> bool:
    truths = [read_truth(root) for root in (first, second)]
    assert truths[0] and truths[1]
    return truths[0].keys() == truths[1].keys() and all(
        np.array_equal(truths[0][name].boxes, truths[1][name].boxes)
        and np.array_equal(truths[0][name].keypoints, truths[1][name].keypoints)
        for name in truths[0]
    )


@settings(max_examples=10, deadline=None)
@given(spec=_SPECS, take=_TAKES)
def test_the_same_seed_draws_the_same_frames(spec: DemoSpec, take: _DemoClip) -> None:
    first, second = _scene(spec, take), _scene(spec, take)
    middle = first.joints.shape[1] // 2
    np.testing.assert_array_equal(render(first, middle), render(second, middle))
    np.testing.assert_array_equal(first.joints, second.joints)
    other = _scene(DemoSpec(spec.seed + 1), take)
    assert first.joints.shape != other.joints.shape or (first.joints != other.joints).any()


@pytest.fixture(scope="module")
def small_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four videos made once more, by two workers."""
    root = tmp_path_factory.mktemp("again")
    assert generate_demo(root, _SMALL, workers=2) == 4
    return root


def test_the_same_settings_give_the_same_clips_and_truth(small: Path, small_again: Path) -> None:
    assert _contents(small).keys() == _contents(small_again).keys()
    assert _same_truth(small, small_again)
    for clip in _clips(_SMALL):
        first, second = (probe(_video_path(root, clip)) for root in (small, small_again))
        assert (first.frames, first.height, first.width) == (second.frames, second.height, second.width)


def test_the_same_settings_give_the_same_bytes(small: Path, small_again: Path) -> None:
    first, second = _contents(small), _contents(small_again)
    assert [name for name in first if first[name] != second[name]] == []


@settings(max_examples=60, deadline=None)
@given(spec=_SPECS, take=_TAKES)
def test_boxes_hold_all_keypoints_and_lie_in_the_frame(spec: DemoSpec, take: _DemoClip) -> None:
    scene = _scene(spec, take)
    boxes, keypoints = scene_truth(scene)
    persons, frames = (2 if take.action in motion.TWO_PERSONS else 1), keypoints.shape[1]
    assert boxes.shape == (persons, frames, 4) and keypoints.shape == (persons, frames, 17, 2)
    assert boxes.dtype == keypoints.dtype == np.float32
    height, width = scene.size
    assert (boxes >= 0).all() and (boxes[..., 2] <= width).all() and (boxes[..., 3] <= height).all()
    low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]
    assert ((keypoints >= low) & (keypoints <= high)).all()


def test_boxes_hold_what_is_drawn_of_a_person() -> None:
    scene = _scene(_SMALL, next(_clips(_SMALL)))
    pixels = render(scene, 0).astype(int)
    nobody = render(_without_persons(scene), 0).astype(int)
    rows, columns = np.nonzero(np.abs(pixels - nobody).max(axis=2) > 40)
    x1, y1, x2, y2 = scene_truth(scene)[0][0, 0]
    inside = (columns >= x1 - 2) & (columns <= x2 + 2) & (rows >= y1 - 2) & (rows <= y2 + 2)
    # The object in the hand is no part of the person.
    assert inside.mean() > 0.9
    assert columns[inside].min() < x1 + 4 and columns[inside].max() > x2 - 5
    assert rows[inside].min() < y1 + 12 and rows[inside].max() > y2 - 12


def _without_persons(scene: Scene) -> Scene:
    return Scene(**{**_fields(scene), "joints": scene.joints + 10_000})


def _fields(scene: Scene) -> dict[str, object]:
    return {name: getattr(scene, name) for name in Scene.__dataclass_fields__}


def test_the_videos_show_the_frames_that_the_truth_is_of(small: Path) -> None:
    truth = read_truth(small)
    assert truth is not None and truth.keys() == {clip.id for clip in _clips(_SMALL)}
    for clip in _clips(_SMALL):
        scene, found = _scene(_SMALL, clip), probe(_video_path(small, clip))
        assert (found.height, found.width, found.fps) == (*scene.size, 30)
        assert found.frames == scene.joints.shape[1] == truth[clip.id].boxes.shape[1]
        np.testing.assert_array_equal(truth[clip.id].keypoints, scene.joints)
    first = next(_clips(_SMALL))
    last = _scene(_SMALL, first).joints.shape[1] - 1
    (frame,) = read_frames(_video_path(small, first), last, last + 1)
    drawn = render(_scene(_SMALL, first), last)
    assert np.abs(frame.astype(int) - drawn).mean() < 8


def test_the_videos_are_mpeg4_as_ntus_are(small: Path) -> None:
    for path in small.glob("*.mp4"):
        with av.open(path) as container:
            assert container.streams.video[0].codec_context.name == "mpeg4"


def _shape_of_motion(scene: Scene) -> np.ndarray:
    """Keypoints (M, T, 17, 2) without where in the picture they are and how large."""
    centred = scene.joints - scene.joints.mean(axis=(0, 1, 2), dtype=float)
    return centred / centred.std()


@settings(max_examples=20, deadline=None)
@given(spec=_SPECS, take=_TAKES, pair=st.sampled_from(object_pairs()))
def test_actions_of_an_object_pair_move_identically_and_hold_different_things(
    spec: DemoSpec, take: _DemoClip, pair: tuple[int, int]
) -> None:
    one, other = (
        _scene(spec, _DemoClip(take.setup, take.camera, take.performer, take.repetition, label + 1))
        for label in pair
    )
    np.testing.assert_allclose(_shape_of_motion(one), _shape_of_motion(other), atol=1e-3)
    assert one.held != other.held and None not in (one.held, other.held)
    assert one.looks == other.looks


def test_object_pairs_are_labels_from_zero() -> None:
    names = list(motion.ACTIONS.values())
    assert [(names[a], names[b]) for a, b in object_pairs()] == [
        ("drink from a cup", "make a phone call"), ("lift a ball", "lift a box")
    ]  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(spec=_SPECS, performer=st.sampled_from(DemoSpec().performers), camera=st.integers(1, 3))
def test_actions_of_a_motion_pair_look_alike_and_move_differently(
    spec: DemoSpec, performer: int, camera: int
) -> None:
    sit, stand, wave, beckon = (
        _scene(spec, _DemoClip(1, camera, performer, 1, action)) for action in (1, 2, 3, 4)
    )
    assert sit.stool and stand.stool and not wave.stool and not beckon.stool
    assert {scene.held for scene in (sit, stand, wave, beckon)} == {None}
    fallen = [scene.joints[0, -1, _L_HIP, 1] - scene.joints[0, 0, _L_HIP, 1] for scene in (sit, stand)]
    assert fallen[0] > 0 > fallen[1]
    assert _sideways(wave) > 1.0 > _sideways(beckon)


def _sideways(scene: Scene) -> float:
    """How much farther across than up and down the hand goes that moves more."""
    hands = scene.joints[0, :, [_L_WRIST, _R_WRIST]].std(axis=1)  # (hand, x and y)
    across, down = hands[hands.sum(axis=1).argmax()]
    return float(across / down)


@pytest.fixture
def names(tmp_path: Path) -> Path:
    """The default demo's file names, which are all that a scan reads."""
    for clip in _clips(DemoSpec()):
        _video_path(tmp_path, clip).touch()
    return tmp_path


def test_names_and_splits_are_ntus(names: Path) -> None:
    found = scan(names, IndexParams("demo"))
    assert len(found.entries) == 13 * 3 * 12 and found.left_out == ()
    assert found.classes == dict.fromkeys(("xsub", "xview"), tuple(motion.ACTIONS.values()))
    for entry in found.entries:
        assert entry.video == f"{entry.id}_rgb.mp4"
        assert dict(entry.labels) == dict.fromkeys(("xsub", "xview"), int(entry.id[-3:]) - 1)
        assert dict(entry.splits) == {
            "xsub": "train" if entry.subject in {1, 2, 4, 5, 8, 9, 13, 14, 15, 16} else "test",
            "xview": "train" if entry.camera in {2, 3} else "test",
        }
    for protocol in ("xsub", "xview"):
        for split in ("train", "test"):
            labels = [dict(e.labels)[protocol] for e in found.entries if dict(e.splits)[protocol] == split]
            assert set(labels) == set(range(12))


def test_an_action_that_is_not_the_demos_is_left_out(names: Path) -> None:
    (names / "S001C001P001R001A013_rgb.mp4").touch()
    found = scan(names, IndexParams("demo"))
    assert len(found.entries) == 468
    assert found.left_out == (("S001C001P001R001A013_rgb.mp4", "action is not in the demo"),)


def test_nobody_of_the_test_is_seen_in_training() -> None:
    train = {1, 2, 4, 5, 8, 9, 13, 14, 15, 16}
    for performer in DemoSpec().performers:
        partner = _partner(DemoSpec(), performer)
        assert partner != performer and (partner in train) == (performer in train)


def test_the_default_demo_is_as_varied_as_promised() -> None:
    spec = DemoSpec()
    scenes = {clip: _scene(spec, clip) for clip in _every_seventh(_clips(spec))}
    assert len({clip.performer for clip in _clips(spec)}) >= 8
    assert len({clip.action for clip in _clips(spec)}) == len(motion.ACTIONS) >= 12
    assert len({clip.camera for clip in _clips(spec)}) == 3
    assert len({clip.id for clip in _clips(spec)}) == 468
    lengths = Counter(scene.joints.shape[1] < 48 for scene in scenes.values())
    assert lengths[True] > 5 and lengths[False] > 5
    assert len({scene.size for scene in scenes.values()}) >= 3
    assert {len(scene.looks) for scene in scenes.values()} == {1, 2}


def _every_seventh(clips: Iterator[_DemoClip]) -> list[_DemoClip]:
    return list(clips)[::7]


def test_a_second_call_makes_nothing(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.iterdir()}
    assert generate_demo(small, _SMALL) == 0
    assert {path: path.stat().st_mtime_ns for path in small.iterdir()} == before


def test_an_interrupted_call_goes_on_where_it_was(own: Path, small: Path) -> None:
    lost = _video_path(own, next(_clips(_SMALL)))
    lost.rename(lost.with_name(f".partial-{lost.name}"))
    (own / "truth.npz").unlink()
    kept = _video_path(own, list(_clips(_SMALL))[1])
    before = kept.stat().st_mtime_ns
    assert generate_demo(own, _SMALL, workers=1) == 1
    assert kept.stat().st_mtime_ns == before
    assert _contents(own).keys() == _contents(small).keys()
    assert probe(lost).frames == probe(small / lost.name).frames
    assert _same_truth(own, small)


def test_a_lost_truth_is_written_again(own: Path, small: Path) -> None:
    (own / "truth.npz").unlink()
    assert generate_demo(own, _SMALL) == 0
    assert _same_truth(own, small)


@pytest.mark.parametrize(
    "other",
    [
        DemoSpec(seed=3, performers=(1, 2), cameras=1, actions=(5, 11)),
        DemoSpec(2, (1, 2), 1, 1, (5,)),
        DemoSpec(2, (1, 2, 3), 1),
    ],
)
def test_other_settings_are_refused_and_nothing_is_changed(small: Path, other: DemoSpec) -> None:
    before = _contents(small)
    with pytest.raises(HarcacheError, match=r"holds a demo made with other settings .*: give another"):
        generate_demo(small, other)
    assert _contents(small) == before


def test_other_settings_are_refused_after_an_interrupted_call_too(tmp_path: Path) -> None:
    blocked = _video_path(tmp_path, next(_clips(_SMALL)))
    (tmp_path / f".partial-{blocked.name}").mkdir()
    with pytest.raises(OSError, match="directory"):
        generate_demo(tmp_path, _SMALL, workers=1)
    with pytest.raises(HarcacheError, match="holds a demo made with other settings"):
        generate_demo(tmp_path, DemoSpec(), workers=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"actions": (5, 13)}, r"the demo has no actions \[13\]: expected some of 1 to 12"),
        ({"actions": ()}, r"the demo has no actions \[\]"),
        ({"cameras": 4}, "and 4 cameras: expected numbers from 1 and 1 to 3"),
        ({"performers": ()}, r"performers \(\) and 3 cameras"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(HarcacheError, match=message):
        DemoSpec(**values)  # type: ignore[arg-type]


def test_a_real_dataset_has_no_truth(tmp_path: Path) -> None:
    assert read_truth(tmp_path) is None

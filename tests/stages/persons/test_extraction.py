"""Clips of a unit share one network: each is read once, fails alone, and its time is told."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from harcache.cache.annotations import read_detections, write_detections
from harcache.models.pretrained.network import Finish, Image
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip, read_manifest
from harcache.pipeline.params import DatasetParams, DetectParams
from harcache.pipeline.work.engine import Report
from harcache.pipeline.work.parts import read_records
from harcache.pipeline.work.plan import Unit
from harcache.stages.persons import extraction
from harcache.stages.persons.extraction import Context, extract_part
from harcache.stages.shared.units import part_file
from harcache.stages.shared.workspace import Workspace
from tests.footage import FRAMES, film


class _Brightness:
    """A detector whose box ends at the brightest pixel's value."""

    batch = 4

    def memory(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.empty((self.batch, *shape), np.uint8)

    def prepare(self, frame: np.ndarray, boxes: np.ndarray) -> list[Image]:
        return [Image(frame.shape, partial(np.copyto, src=frame), None)]

    def start(self, pixels: np.ndarray, images: Sequence[Image]) -> Finish:
        boxes = [np.array([[0, 0, frame.max(), 1, 1]], np.float32) for frame in pixels[: len(images)]]
        return lambda: (boxes, 0.01)


@pytest.fixture
def filmed(tmp_path: Path, params: DatasetParams, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(extraction, "_network", lambda *_: _Brightness())
    return film(tmp_path, params, clips=3)[1]


def _extract(
    workspace: Workspace, params: DatasetParams, given_up: tuple[tuple[str, str], ...] = ()
) -> Report:
    assert isinstance(params.detect, DetectParams)
    clips = tuple(read_manifest(workspace.manifest))
    context = Context(workspace.detections, workspace.videos, params.detect, None, "cpu", "")
    workspace.detections.mkdir(parents=True, exist_ok=True)

    def wanted(clip: Clip) -> list[np.ndarray | None]:
        return [np.empty((0, 5)) if frame % 2 else None for frame in range(clip.frames)]

    unit = Unit(0, clips, tuple(clip.id for clip in clips), given_up)
    return extract_part(unit, context, wanted, lambda _, found: found, write_detections)


@pytest.mark.parametrize("threads", ["1", "3", ""])
def test_only_wanted_frames_are_looked_at_with_any_number_of_threads(
    filmed: Workspace, params: DatasetParams, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    report = _extract(filmed, params)
    assert (report.ok, report.failed, report.frames) == (3, 0, 3 * FRAMES)
    for clip in read_manifest(filmed.manifest):
        found = read_detections(part_file(filmed.detections, 0), clip.id)
        assert len(found) == FRAMES // 2
        assert all(boxes[0, 2] > 100 for boxes in found)


def test_a_unit_tells_its_own_time_and_that_of_the_threads_beside_it(
    filmed: Workspace, params: DatasetParams
) -> None:
    seconds = _extract(filmed, params).seconds
    assert set(seconds) == {"network", "wait", "write", "decode ahead", "prepare ahead"}
    assert seconds["network"] == pytest.approx(0.01 * -(-3 * FRAMES // 2 // 4))
    assert seconds["decode ahead"] > 0


def test_a_clip_that_was_given_up_is_not_opened_and_a_broken_one_fails_alone(
    filmed: Workspace, params: DatasetParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    read = extraction.clip_frames

    def clip_frames(videos: Path, clip: Clip) -> object:
        opened.append(Path(clip.video).stem)
        return read(videos, clip)

    monkeypatch.setattr(extraction, "clip_frames", clip_frames)
    clips = read_manifest(filmed.manifest)
    (filmed.videos / clips[1].video).write_bytes(b"no video")
    _extract(filmed, params, given_up=((clips[0].id, "it hangs"),))
    assert Path(clips[0].video).stem not in opened
    ((first, second, third),) = [record.outcomes for record in read_records(filmed.detections)]
    assert (first.status, first.reason) == ("failed", "it hangs")
    assert second.status == "failed" and "no video" in second.reason
    assert third.status == "ok"


def test_what_a_network_can_say_nothing_of_fails_its_clip(
    filmed: Workspace, params: DatasetParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unsure(_Brightness):
        def start(self, pixels: np.ndarray, images: Sequence[Image]) -> Finish:
            return lambda: ([HarcacheError("the output is not finite")] * len(images), 0.0)

    monkeypatch.setattr(extraction, "_network", lambda *_: Unsure())
    assert _extract(filmed, params).failed == 3

"""Batches fill across clips, each clip gets its own results, and threads neither run away nor stay behind."""

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import sleep

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harcache.models.pretrained.batching import Usage, extract
from harcache.models.pretrained.network import Finish, Image
from harcache.pipeline.base.errors import HarcacheError

_Frame = tuple[np.ndarray, np.ndarray]


class _Doubler:
    """Gives twice each pixel's value; of a frame it takes one image a box, of the first box's width."""

    batch = 4

    def __init__(self, look: Callable[[int], object] = lambda _: None) -> None:
        self.sizes: list[int] = []
        self._look = look

    def memory(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.empty((self.batch, *shape), np.uint8)

    def prepare(self, frame: np.ndarray, boxes: np.ndarray) -> list[Image]:
        fill = partial(np.copyto, src=frame[0, 0])
        return [Image((1, int(box[2])), fill, number) for number, box in enumerate(boxes)]

    def start(self, pixels: np.ndarray, images: Sequence[Image]) -> Finish:
        assert {image.shape for image in images} == {pixels.shape[1:]}
        self.sizes.append(len(images))
        self._look(len(images))

        def found(image: Image, drawn: np.ndarray) -> np.ndarray | HarcacheError:
            value = int(drawn[0, 0])
            assert (drawn == value).all()
            return HarcacheError("13 brings bad luck") if value == 13 else np.array([2 * value, image.place])

        return lambda: ([found(*both) for both in zip(images, pixels, strict=False)], 0.0)


def _frames(values: Sequence[int], persons: int = 1, width: int = 3) -> Iterator[_Frame]:
    for value in values:
        yield np.full((2, 2), value, np.uint8), np.tile([0, 0, width, 1, 1], (persons, 1))


@settings(max_examples=40, deadline=None)
@given(
    clips=st.lists(
        st.tuples(st.lists(st.integers(20, 120), max_size=9), st.integers(0, 3), st.integers(1, 9)),
        max_size=6,
    ),
    threads=st.integers(1, 4),
)
def test_every_clip_gets_its_own_results_in_order(
    clips: list[tuple[list[int], int, int]], threads: int
) -> None:
    network, usage = _Doubler(), Usage()
    found = extract(network, {n: _frames(*clip) for n, clip in enumerate(clips)}, threads, usage)
    for number, (values, persons, _) in enumerate(clips):
        expected = [[[2 * value, person] for person in range(persons)] for value in values]
        results = found[number]
        assert not isinstance(results, HarcacheError)
        assert [[one.tolist() for one in frame] for frame in results] == expected
    assert sum(network.sizes) == usage.images == sum(len(values) * persons for values, persons, _ in clips)


def test_a_batch_holds_several_clips_and_only_the_last_is_not_full() -> None:
    network = _Doubler()
    extract(network, {n: _frames(range(20, 23), persons=2) for n in range(3)}, 2)
    assert network.sizes == [4, 4, 4, 4, 2]


def test_a_clip_that_fails_in_reading_or_in_the_network_fails_alone() -> None:
    def broken() -> Iterator[_Frame]:
        yield from _frames([20, 21])
        raise HarcacheError("damaged after 2 frames")

    sources = {"good": _frames(range(30, 40)), "broken": broken(), "unlucky": _frames([12, 13, 14])}
    found = extract(_Doubler(), sources, 3)
    assert [one.tolist() for (one,) in found["good"]] == [[2 * value, 0] for value in range(30, 40)]  # type: ignore[union-attr]
    assert str(found["broken"]) == "damaged after 2 frames"
    assert str(found["unlucky"]) == "13 brings bad luck"


def test_a_clip_whose_image_can_not_be_drawn_fails_alone() -> None:
    class Draws(_Doubler):
        def prepare(self, frame: np.ndarray, boxes: np.ndarray) -> list[Image]:
            (image,) = super().prepare(frame, boxes)

            def draw(pixels: np.ndarray) -> None:
                pixels[:] = frame[0, 0]
                if frame[0, 0] == 66:
                    raise HarcacheError("66 can't be drawn")

            return [Image(image.shape, draw, image.place)]

    found = extract(Draws(), {"undrawn": _frames([65, 66, 67]), "good": _frames(range(30, 40))}, 1)
    assert str(found["undrawn"]) == "66 can't be drawn"
    assert [[one.tolist() for one in frame] for frame in found["good"]] == [  # type: ignore[union-attr]
        [[2 * value, 0]] for value in range(30, 40)
    ]


@pytest.mark.parametrize("where", ["source", "network"])
def test_a_defect_is_raised_and_no_thread_stays_behind(where: str) -> None:
    def defect(*_: object) -> Iterator[_Frame]:
        raise ZeroDivisionError(where)
        yield

    before = threading.active_count()
    network = _Doubler(look=(lambda _: next(defect())) if where == "network" else lambda _: None)
    many = {n: _frames(range(100)) for n in range(6)}
    with pytest.raises(ZeroDivisionError, match=where):
        extract(network, many | ({6: defect()} if where == "source" else {}), 7)
    assert threading.active_count() == before


def test_reading_does_not_run_away_from_the_network() -> None:
    read, most = [0], [0]

    def counted(values: Sequence[int]) -> Iterator[_Frame]:
        for frame in _frames(values):
            read[0] += 1
            yield frame

    seen = [0]

    def look(size: int) -> None:
        sleep(0.01)
        most[0] = max(most[0], read[0] - seen[0])
        seen[0] += size

    extract(_Doubler(look), {n: counted(range(20, 120)) for n in range(3)}, 3)
    # Two batches wait, one is being filled, and each of three threads has one frame in its hands.
    assert seen[0] == 300
    assert most[0] <= 2 * 4 + 4 + 3 + 1


def test_many_shapes_at_once_do_not_pile_up() -> None:
    network = _Doubler()
    sources = {n: _frames([20] * 3, width=n + 1) for n in range(12)}
    found = extract(network, sources, 1)
    assert all(len(found[n]) == 3 for n in range(12))  # type: ignore[arg-type]
    # More than two batches never wait, so the fullest is started before it is full.
    assert network.sizes[0] == 3


def test_time_is_told_apart() -> None:
    def slow() -> Iterator[_Frame]:
        for frame in _frames(range(20, 28)):
            sleep(0.005)
            yield frame

    usage = Usage()
    extract(_Doubler(look=lambda _: sleep(0.02)), {"clip": slow()}, 1, usage)
    assert usage.decode >= 8 * 0.005
    assert usage.start >= 2 * 0.02
    assert usage.wait >= usage.starved

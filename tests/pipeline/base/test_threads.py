"""Nothing goes on behind a pool's back."""

import time
from threading import Event

import pytest

from harcache.pipeline.base.threads import thread_pool


def test_an_error_waits_for_what_is_worked_on_and_begins_nothing_more() -> None:
    begun, ended = list[int](), list[int]()
    waiting = Event()

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            waiting.wait()
            raise ValueError("zero is bad")
        waiting.set()
        time.sleep(0.2)
        ended.append(number)

    with pytest.raises(ValueError, match="zero is bad"), thread_pool(2) as pool:
        list(pool.map(work, range(1000)))
    assert len(begun) < 10 and begun[1:] == ended


def test_results_come_in_the_order_of_the_work() -> None:
    with thread_pool() as pool:
        assert list(pool.map(str, range(100))) == [str(number) for number in range(100)]

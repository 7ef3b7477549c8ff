"""Promises of cache.streaming.input_wait: what is waited for is counted, and its cause is named."""

import time

import pytest
import torch

from harcache.cache.streaming.input_wait import Waits, Work, measured, watch

_CPU = torch.device("cpu")


def batches(count, seconds):
    for number in range(count):
        time.sleep(seconds)
        yield {"label": torch.zeros(number + 1)}


def test_the_time_between_asking_and_getting_is_waited_and_the_rest_is_not():
    waits = Waits()
    for _ in watch(batches(4, 0.03), waits, _CPU):
        time.sleep(0.01)
    assert (waits.steps, waits.samples) == (4, 10)
    assert waits.seconds > waits.waited >= 4 * 0.03
    assert waits.seconds - waits.waited >= 4 * 0.01
    assert waits.share == waits.waited / waits.seconds


def test_an_iteration_left_in_the_middle_counts_its_whole_steps():
    waits = Waits()
    for number, _ in enumerate(watch(batches(9, 0), waits, _CPU)):
        if number == 3:
            break
    assert waits.steps == 3


@pytest.mark.parametrize("cause", ["decode", "disk", "transfer"])
def test_a_warning_names_what_took_most(cause):
    waits = Waits(steps=20, samples=80, seconds=10, waited=1, **{cause: 3})
    assert f"waits 10% of its time for batches, most of it for {cause} (" in str(waits.warning())


def test_little_waiting_and_none_at_all_warn_of_nothing():
    assert Waits(steps=20, samples=80, seconds=10, waited=0.5, decode=9).warning() is None
    assert Waits(steps=19, samples=80, seconds=10, waited=5, decode=9).warning() is None
    assert Waits().warning() is None
    assert Waits().share == Waits().samples_per_second == 0


def test_time_off_the_processor_is_no_disk_where_no_page_was_fetched():
    def decode():
        time.sleep(0.02)
        return 3

    work = measured(decode)
    assert isinstance(work, Work)
    assert work.samples == 3
    assert work.busy >= 0.02
    assert work.disk == 0

"""Promises of cache.streaming.batch_plan: every sample once per epoch, wherever an epoch is entered."""

from itertools import islice

import numpy as np
import pytest

from harcache.cache.streaming.batch_plan import BatchPlan
from harcache.pipeline.base.errors import HarcacheError
from tests.cache.streaming.small_stores import CLIPS, make


def described(batches):
    return [
        (batch.epoch, batch.number, [(i, frames.tolist(), flip) for i, frames, flip in batch.samples])
        for batch in batches
    ]


@pytest.mark.parametrize(("batch_size", "ranks"), [(1, 1), (4, 1), (4, 2), (6, 6), (22, 2)])
def test_ranks_together_plan_every_sample_once_per_epoch(stores, batch_size, ranks):
    plans = [BatchPlan(make(stores), batch_size, rank, ranks) for rank in range(ranks)]
    planned = [list(plan.batches(3, 0, next_epochs=False)) for plan in plans]
    assert {len(batches) for batches in planned} == {len(plans[0])}
    samples = [sample for batches in planned for batch in batches for sample, _, _ in batch.samples]
    assert sorted(samples) == list(range(len(CLIPS)))


def test_a_plan_entered_in_mid_epoch_is_the_rest_of_the_whole_plan(stores):
    plan = BatchPlan(make(stores), 4)
    whole = described(islice(plan.batches(0, 0, next_epochs=True), 8))
    assert [(epoch, number) for epoch, number, _ in whole] == [divmod(i, 3) for i in range(8)]
    for first in range(1, 3):
        assert described(islice(plan.batches(0, first, next_epochs=True), 8 - first)) == whole[first:]


def test_crops_are_planned_with_their_samples(stores, keypoint_store):
    plan = BatchPlan(make({"heatmaps": keypoint_store}, heatmap_source="keypoints", crop=0.5), 4)
    for batch in plan.batches(0, 0, next_epochs=False):
        samples = np.array([sample for sample, _, _ in batch.samples])
        np.testing.assert_array_equal(batch.crops, plan.dataset.crops(samples, 0))


@pytest.mark.parametrize("batch_size", [0, 4])
def test_a_batch_that_ranks_cannot_share_is_refused(stores, batch_size):
    with pytest.raises(HarcacheError, match="multiple of the 3 processes"):
        BatchPlan(make(stores), batch_size, ranks=3)

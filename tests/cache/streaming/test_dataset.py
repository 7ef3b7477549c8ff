"""Promises of cache.streaming.dataset: the right rows of the right clips."""

import numpy as np
import pytest

from harcache.cache.sampling import uniform_sample_test
from harcache.pipeline.base.errors import HarcacheError
from tests.cache.streaming.small_stores import CLIPS, FRAMES, LENGTHS, VOLUME, make, row, write_store


def test_a_test_sample_holds_the_published_frames_of_both_stores(stores):
    dataset = make(stores, train=False)
    for i, length in enumerate(LENGTHS):
        sample, frames = dataset[i], uniform_sample_test(length, 48)[0]
        np.testing.assert_array_equal(sample["rgb"], [row(FRAMES, i, f) for f in frames[::3]])
        np.testing.assert_array_equal(sample["heatmaps"], [row(VOLUME, i, f) for f in frames])
        assert (sample["label"], sample["index"], sample["flip"]) == (i % 3, i, False)


def test_samples_change_with_epoch_and_seed_and_not_with_other_clips(stores):
    dataset, fewer = make(stores), make(stores, clips=CLIPS[3:])
    for epoch in range(3):
        assert np.array_equal(dataset.draw(3, epoch)[0], fewer.draw(0, epoch)[0])
    drawn = [dataset.draw(6, 0), dataset.draw(6, 1), make(stores, seed=1).draw(6, 0)]
    assert len({frames.tobytes() for frames, _ in drawn}) == 3


def test_flips_come_as_often_as_asked_and_never_in_testing(stores):
    def share(dataset):
        return np.mean([dataset.draw(i, e)[1] for i in range(len(CLIPS)) for e in range(100)])

    assert 0.4 < share(make(stores)) < 0.6
    assert share(make(stores, flip=0)) == share(make(stores, train=False)) == 0


def test_a_store_without_keypoints_is_refused(stores):
    with pytest.raises(HarcacheError, match="no array 'keypoints'"):
        make(stores, heatmap_source="keypoints")


def test_stores_of_other_lengths_are_refused(tmp_path, stores):
    other = write_store(tmp_path / "rgb.zarr", FRAMES, 256, [5, 47, *LENGTHS[2:]])
    with pytest.raises(HarcacheError, match="'clip1' has 47 RGB frames and 48 heatmaps"):
        make({**stores, "rgb": other})


def test_a_clip_that_a_store_does_not_hold_is_refused(stores):
    with pytest.raises(HarcacheError, match="no clip 'other'"):
        make(stores, clips=[("other", 0)])


def test_a_dataset_of_nothing_is_refused(stores):
    with pytest.raises(HarcacheError, match="without clips"):
        make(stores, clips=[])
    with pytest.raises(HarcacheError, match="without stores"):
        make({})

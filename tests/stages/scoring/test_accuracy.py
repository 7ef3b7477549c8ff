"""The figures of accuracy: by examples counted by hand, and by rules that any scores must keep."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harcache.stages.scoring.accuracy import (
    Pair,
    class_measures,
    count_confusions,
    hardest_pairs,
    mean_class_accuracy,
    softmax,
    top_accuracy,
)

# Three clips of class 0, one of class 1, none of class 2, two of class 3.
_LABELS = np.array([0, 0, 0, 1, 3, 3])
_SAID = np.array([0, 0, 1, 0, 3, 0])


@st.composite
def _scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    clips, classes = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    # Few values, so that ties are common.
    return rng.integers(-3, 4, (clips, classes)).astype(float), rng.integers(0, classes, clips)


def test_the_confusion_matrix_counts_true_classes_in_rows() -> None:
    assert count_confusions(_SAID, _LABELS, 4).tolist() == [
        [2, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
        [1, 0, 0, 1],
    ]


def test_mean_class_accuracy_weighs_classes_and_not_clips() -> None:
    assert mean_class_accuracy(count_confusions(_SAID, _LABELS, 4)) == pytest.approx((2 / 3 + 0 + 1 / 2) / 3)


def test_the_table_of_classes_leaves_open_what_no_clip_decides() -> None:
    rows = class_measures(count_confusions(_SAID, _LABELS, 4), ["a", "b", "c", "d"])
    assert rows[0] == {
        "label": 0, "name": "a", "clips": 3, "recall": 2 / 3, "precision": 1 / 2, "most_taken_for": "b"
    }  # fmt: skip
    assert (rows[2]["recall"], rows[2]["precision"], rows[2]["most_taken_for"]) == (None, None, None)
    assert (rows[3]["recall"], rows[3]["precision"], rows[3]["most_taken_for"]) == (0.5, 1.0, "a")


def test_the_hardest_pair_is_mixed_up_most_in_either_direction() -> None:
    assert hardest_pairs(count_confusions(_SAID, _LABELS, 4)) == [Pair(0, 1, 1, 1, 4), Pair(0, 3, 0, 1, 5)]
    assert Pair(0, 1, 1, 1, 4).rate == 0.5
    assert hardest_pairs(count_confusions(_LABELS, _LABELS, 4)) == []


def test_a_class_within_the_best_five_counts_in_top_5() -> None:
    scores = np.tile(np.arange(8.0), (8, 1))
    assert top_accuracy(5, scores, np.arange(8)) == 5 / 8
    assert top_accuracy(5, scores[:, :3], np.arange(3).repeat(3)[:8]) == 1


@given(_scored())
def test_top_1_is_what_the_confusion_matrix_says(scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = scored
    counts = count_confusions(scores.argmax(axis=1), labels, scores.shape[1])
    assert top_accuracy(1, scores, labels) == counts.trace() / counts.sum()
    assert counts.sum() == len(labels)


@given(_scored())
def test_top_k_grows_with_k_to_all_clips(scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = scored
    grown = [top_accuracy(k, scores, labels) for k in range(1, scores.shape[1] + 1)]
    assert grown == sorted(grown) and grown[-1] == 1


@given(_scored())
def test_probabilities_add_up_to_one_and_keep_the_order(scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, _ = scored
    found = softmax(scores * 200)
    assert np.allclose(found.sum(axis=1), 1)
    assert (found.argmax(axis=1) == scores.argmax(axis=1)).all()

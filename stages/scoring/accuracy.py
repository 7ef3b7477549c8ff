"""How right scores are: the figures that papers print, and which classes are taken for which.

Everything comes from one confusion matrix or from the scores themselves, so that no two figures disagree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Pair",
    "accuracy_within_pairs",
    "class_measures",
    "count_confusions",
    "hardest_pairs",
    "mean_class_accuracy",
    "softmax",
    "top_accuracy",
]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two classes and how many of their ``clips`` are taken for the other: ``first`` < ``second``."""

    first: int
    second: int
    first_as_second: int
    second_as_first: int
    clips: int

    @property
    def rate(self) -> float:
        """Part of the two classes' clips that is taken for the other one."""
        return (self.first_as_second + self.second_as_first) / self.clips


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return the probabilities of (N, C) logits."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def top_accuracy(k: int, scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the part of clips whose class is among the ``k`` that score most: (N, C) scores, (N,) labels.

    Of classes that score the same the first ones count.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(axis=1).mean())


def count_confusions(said: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Count clips by class (rows) and the class said (columns): (classes, classes) int64."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, said), 1)
    return counts


def mean_class_accuracy(counts: np.ndarray) -> float:
    """Return the mean over classes of each one's accuracy; classes without clips do not count."""
    clips = counts.sum(axis=1)
    return float((counts.diagonal()[clips > 0] / clips[clips > 0]).mean())


def class_measures(counts: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row a class: number, name, clips, part found (recall), precision, and the commonest error.

    What no clip decides is None: the recall of a class without clips, the precision of one never said.
    """
    rows = []
    for label, name in enumerate(names):
        clips, said, right = counts[label].sum(), counts[:, label].sum(), counts[label, label]
        wrong = np.where(np.arange(len(names)) == label, 0, counts[label])
        rows.append(
            {
                "label": label,
                "name": name,
                "clips": int(clips),
                "recall": float(right / clips) if clips else None,
                "precision": float(right / said) if said else None,
                "most_taken_for": names[int(wrong.argmax())] if wrong.any() else None,
            }
        )
    return rows


def hardest_pairs(counts: np.ndarray) -> list[Pair]:
    """Return the pairs of classes that are taken for each other at all, the highest rate first."""
    pairs = [
        Pair(a, b, int(counts[a, b]), int(counts[b, a]), int(counts[[a, b]].sum()))
        for a, b in zip(*np.nonzero(np.triu(counts + counts.T, 1)), strict=True)
    ]
    return sorted(pairs, key=lambda pair: (-pair.rate, -pair.clips, pair.first, pair.second))


def accuracy_within_pairs(scores: np.ndarray, labels: np.ndarray, pairs: Sequence[tuple[int, int]]) -> float:
    """How often the right one of two classes scores more, over the clips of all pairs; chance is 0.5."""
    right = [scores[labels == a, a] > scores[labels == a, b] for pair in pairs for a, b in (pair, pair[::-1])]
    return float(np.concatenate(right).mean())

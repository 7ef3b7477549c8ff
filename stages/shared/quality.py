"""How far a clip's persons and poses can be trusted, so that bad ones are counted, seen and left out.

From the poses alone: no truth is needed, and nothing is decoded again. Measures are kept beside the flags,
since every dataset has its own idea of what is bad.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

import numpy as np

from harcache.pipeline.params import QualityFlag

__all__ = ["FLAGS", "Quality", "quality_of"]

FLAGS: tuple[QualityFlag, ...] = get_args(QualityFlag)
"""What may be wrong with a clip; `Quality.flags` says when."""

_LEAST_CONFIDENCE = 0.4
_MOST_OUTSIDE = 0.1
_LEAST_SEEN = 0.5
_JUMP = 0.5  # of a person's size, from one frame to the next


@dataclass(frozen=True, slots=True)
class Quality:
    """Measures of a clip: how many ``persons``, and how sure, where and how steady their keypoints are.

    ``persons`` are the slots in use. ``confidence`` is the mean score, ``outside`` the part that lies outside
    of the image, ``changes`` how often whoever has a slot is suddenly somewhere else, ``seen`` the part of
    the frames in which anyone is found, ``dropped`` the persons without a slot, added up over the frames.
    The last two are None where a table, or the poses, are from before they were measured.
    """

    persons: int
    confidence: float
    outside: float
    changes: int
    seen: float | None
    dropped: int | None = None

    def tells(self, flags: Iterable[str]) -> bool:
        """Return whether what these flags depend on was measured."""
        unknown = {"rarely_seen"} if self.seen is None else set[str]()
        unknown |= {"crowded"} if self.dropped is None else set()
        return unknown.isdisjoint(flags)

    def flags(self, whole_image: bool) -> tuple[str, ...]:
        """Return those of ``FLAGS`` that hold: a mean score under 0.4, over a tenth outside, any change,
        nobody in most frames, anybody dropped.

        ``whole_image`` says whether the crop is that. Of a clip without persons only that is said.
        """
        if not self.persons:
            return ("nobody", "whole_image") if whole_image else ("nobody",)
        holds = (
            False,
            self.confidence < _LEAST_CONFIDENCE,
            whole_image,
            self.outside > _MOST_OUTSIDE,
            self.changes > 0,
            self.seen is not None and self.seen < _LEAST_SEEN,
            bool(self.dropped),
        )
        return tuple(flag for flag, held in zip(FLAGS, holds, strict=True) if held)


def quality_of(
    keypoints: np.ndarray, scores: np.ndarray, image_size: tuple[int, int], min_score: float
) -> Quality:
    """Measure a clip: ``keypoints`` (M, T, K, 2) pixels, NaN where nobody is, ``scores`` (M, T, K).

    ``image_size`` is height, width. For places, keypoints that score under ``min_score`` don't count.
    """
    placed = np.isfinite(keypoints).all(axis=-1)
    # Skeletons in space may have no place in the picture.
    seen = placed | (scores > 0)
    counted = placed & (scores >= min_score)
    if not seen.any():
        return Quality(0, 0.0, 0.0, 0, 0.0)
    height, width = image_size
    places = np.where(counted[..., None], keypoints, 0.0)
    beyond = ((places < 0) | (places >= (width, height))).any(axis=-1)
    confidence = float(np.nan_to_num(scores[seen]).clip(0, 1).mean())
    changes = sum(_jumps(one, there) for one, there in zip(keypoints, counted, strict=True))
    persons = int(seen.any(axis=(1, 2)).sum())
    outside = float(beyond.sum() / max(counted.sum(), 1))
    return Quality(persons, confidence, outside, changes, float(seen.any(axis=(0, 2)).mean()))


def _jumps(keypoints: np.ndarray, counted: np.ndarray) -> int:
    """Count how often one person (T, K, 2) moves more than half their size a frame.

    From each frame to the next in which they are seen, by keypoints that count in both.
    """
    frames = np.flatnonzero(counted.any(axis=1))
    before, now = frames[:-1], frames[1:]
    both = counted[before] & counted[now]
    points = np.where(both[..., None], keypoints[[before, now]], np.nan)[:, both.sum(axis=1) > 1]
    if not points.size:
        return 0
    gaps = (now - before)[both.sum(axis=1) > 1]
    moved = np.linalg.norm(np.nanmean(points[1], axis=1) - np.nanmean(points[0], axis=1), axis=1)
    sizes = (np.nanmax(points[0], axis=1) - np.nanmin(points[0], axis=1)).max(axis=1)
    return int((moved > _JUMP * np.maximum(sizes, 1.0) * gaps).sum())

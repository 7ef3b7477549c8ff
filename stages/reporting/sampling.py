"""A choice of clips that is the same whenever the report is made."""

from collections.abc import Sequence

import numpy as np

__all__ = ["sample"]

_SEED = 0


def sample(ids: Sequence[str], count: int) -> list[str]:
    """Choose up to ``count`` ids, always the same of the same ones, in their order."""
    chosen = np.random.default_rng(_SEED).permutation(len(ids))[:count]
    return [ids[number] for number in sorted(chosen.tolist())]

"""Kinds of values that parameters have, and what their sections have in common."""

from dataclasses import asdict, dataclass, is_dataclass
from typing import Annotated, Literal

from harcache.pipeline.base.fingerprints import fingerprint

__all__ = [
    "Count",
    "Fraction",
    "Natural",
    "NotNegative",
    "Positive",
    "Precision",
    "QualityFlag",
    "Range",
    "Section",
]


@dataclass(frozen=True)
class Range:
    """The least and the greatest value that a number may have."""

    low: float
    high: float = float("inf")

    def __str__(self) -> str:
        return f" of {self.low} or more" if self.high == float("inf") else f" from {self.low} to {self.high}"


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(1e-9)]
NotNegative = Annotated[float, Range(0)]
Precision = Literal["float32", "bfloat16", "float16"]
QualityFlag = Literal[
    "nobody", "low_confidence", "whole_image", "outside", "identity_change", "rarely_seen", "crowded"
]
"""What may be wrong with a clip's persons and poses; the crop stage's table says it."""


class Section:
    """The base of every section's dataclass."""

    @property
    def fingerprint(self) -> str:
        """Stands for all values of the section."""
        assert is_dataclass(self)
        return fingerprint(asdict(self))

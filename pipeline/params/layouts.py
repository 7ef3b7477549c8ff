"""The layouts of datasets, and what each takes in ``index``; a layout's own file is in `pipeline.datasets`.

A new layout is a file there and its name here: in a class that has its options, or in the one without any.
"""

from dataclasses import dataclass
from typing import Literal

from harcache.pipeline.params.kinds import Fraction, Natural, Section

__all__ = ["FolderIndexParams", "IndexParams", "NtuIndexParams"]


@dataclass(frozen=True)
class IndexParams(Section):
    """How videos become clips: of these layouts file names, or files beside the videos, tell everything.

    Layout poses: the clips are those of a file of poses, `pose.source`.
    """

    layout: Literal["demo", "pku_mmd", "poses", "toyota_smarthome", "utd_mhad"]


@dataclass(frozen=True)
class FolderIndexParams(Section):
    """Any videos: a folder a class, or ``table``, a CSV file of path, label and more.

    Paths are relative to the dataset's folder of videos. Where the table has no column split,
    ``test_subjects`` and ``val_subjects`` or the ratios choose. Videos whose paths match ``group_pattern``
    alike stay together.
    """

    layout: Literal["folder"]
    table: str | None = None
    test_ratio: Fraction = 0.2
    seed: Natural = 0
    val_ratio: Fraction = 0.0
    test_subjects: tuple[Natural, ...] = ()
    val_subjects: tuple[Natural, ...] = ()
    group_pattern: str | None = None


@dataclass(frozen=True)
class NtuIndexParams(Section):
    """NTU RGB+D: ``missing_skeletons`` is a list of samples to leave out.

    Its path is relative to the dataset's folder of videos.
    """

    layout: Literal["ntu60", "ntu120"]
    missing_skeletons: str | None = None

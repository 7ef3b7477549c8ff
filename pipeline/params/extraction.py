"""What the stages from detect to rgb take: a section each, of which a backend may have its own."""

from dataclasses import asdict, dataclass, is_dataclass
from typing import Annotated, Literal

from harcache.pipeline.base.fingerprints import fingerprint
from harcache.pipeline.params.backends import DETECTORS, POSE_ESTIMATORS
from harcache.pipeline.params.kinds import Count, Fraction, NotNegative, Positive, Precision, Range, Section

__all__ = [
    "CropParams",
    "DetectParams",
    "FramesParams",
    "GivenBoxesParams",
    "HeatmapParams",
    "ImportedPoseParams",
    "KinectPoseParams",
    "NoDetectParams",
    "PoseParams",
    "RgbParams",
]


@dataclass(frozen=True)
class DetectParams(Section):
    """The person detector; ``image_size`` is pixels of the longer side.

    It looks at ``every`` so many frames, and between them persons move in straight lines.
    """

    backend: Literal[tuple(DETECTORS)]  # type: ignore[valid-type]
    weights: str
    image_size: Count
    score: Fraction
    nms_iou: Fraction
    max_persons: Count
    precision: Precision
    every: Count = 1

    @property
    def fingerprint(self) -> str:
        """Stands for all values; the same as before there was ``every`` where every frame is looked at."""
        values = asdict(self)
        if self.every == 1:
            del values["every"]
        return fingerprint(values)


@dataclass(frozen=True)
class GivenBoxesParams(Section):
    """Boxes that are there already: ``source`` is a CSV or JSON file, see `stages.persons.given_boxes`."""

    backend: Literal["boxes"]
    source: str


@dataclass(frozen=True)
class NoDetectParams(Section):
    """No detector: no clip has boxes. For poses that are brought along."""

    backend: Literal["none"]


@dataclass(frozen=True)
class PoseParams(Section):
    """The pose estimator; at most ``max_persons`` are kept a clip."""

    backend: Literal[tuple(POSE_ESTIMATORS)]  # type: ignore[valid-type]
    config: str
    weights: str
    flip_test: bool
    max_persons: Count
    precision: Precision


class _BroughtAlong(Section):
    @property
    def fingerprint(self) -> str:
        """Stands for all values that poses depend on: not where they lie, nor how many may be missing."""
        assert is_dataclass(self)
        values = asdict(self)
        del values["max_skipped"]
        return fingerprint(values | {"source": ""})


@dataclass(frozen=True)
class ImportedPoseParams(_BroughtAlong):
    """Poses that are there already: ``source`` is a file that `harcache poses import` wrote.

    ``max_skipped``: part of the clips that may lack poses; ``--max-skipped`` overrides it.
    """

    backend: Literal["import"]
    source: str
    max_persons: Count
    max_skipped: Fraction = 0.0


@dataclass(frozen=True)
class KinectPoseParams(_BroughtAlong):
    """Kinect's skeletons: ``source`` is the folder of NTU's ``.skeleton`` or UTD-MHAD's ``.mat`` files.

    ``keep_missing``: also take the clips that a list of missing skeletons in that folder names.
    ``max_skipped``: part of the clips that may lack skeletons and are on no list; ``--max-skipped`` overrides
    it.
    """

    backend: Literal["kinect"]
    source: str
    max_persons: Count
    keep_missing: bool = False
    max_skipped: Fraction = 0.0


@dataclass(frozen=True)
class CropParams(Section):
    """The square box of a clip: the persons' box, its half extents enlarged by the part ``padding``.

    What leaves the image is cut off ("clip") or filled ("pad"). Keypoints under ``min_score`` don't count.
    A quarter and "clip" are what the paper's authors released.
    """

    min_score: Fraction
    padding: NotNegative = 0.25
    fit: Literal["clip", "pad"] = "clip"


@dataclass(frozen=True)
class FramesParams(Section):
    """Frames stored of a clip: all (None), or at most ``max_frames``, evenly spread."""

    max_frames: Count | None


@dataclass(frozen=True)
class HeatmapParams(Section):
    """Pose heatmaps: 56 pixels and a sigma of 0.6 pixels are the paper's."""

    shard_rows: Count
    size: Count = 56
    sigma: Positive = 0.6


@dataclass(frozen=True)
class RgbParams(Section):
    """RGB crops: 224 pixels are the paper's; JPEG of quality 95 is off by 0.9 grey levels on average."""

    shard_rows: Count
    size: Count = 224
    codec: Literal["jpeg", "zstd"] = "jpeg"
    quality: Annotated[int, Range(1, 100)] = 95

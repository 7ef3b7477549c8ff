"""What the training and the evaluation of EPAM-Net and AMFI-Net take."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from harcache.pipeline.params.kinds import (
    Count,
    Fraction,
    Natural,
    NotNegative,
    Positive,
    Precision,
    QualityFlag,
    Range,
    Section,
)

__all__ = [
    "AmfiModelParams",
    "AmfiParams",
    "AmfiSampleParams",
    "EvaluateParams",
    "FusionRecipeParams",
    "ModelParams",
    "RecipeParams",
    "SampleParams",
    "TrainParams",
]


@dataclass(frozen=True)
class SampleParams(Section):
    """Frames of a sample: the paper's 48 poses, of which every third has its RGB frame.

    ``heatmaps``: read from the cached volume, or drawn on the device from the cached keypoints.
    Training leaves out clips with a flag of ``exclude``; testing never does, so that figures stay comparable.
    """

    clip_len: Count = 48
    rgb_frames: Count = 16
    heatmaps: Literal["volume", "keypoints"] = "volume"
    exclude: tuple[QualityFlag, ...] = ()


@dataclass(frozen=True)
class ModelParams(Section):
    """The networks' sizes: the defaults are the paper's EPAM-Net."""

    width: Count = 24
    rgb_blocks: tuple[Count, ...] = (3, 5, 11, 7)
    pose_blocks: tuple[Count, ...] = (5, 11, 7)
    attention: str = "nested"
    dropout: Fraction = 0.5


@dataclass(frozen=True)
class RecipeParams(Section):
    """One training run: SGD with a cosine schedule; the defaults are the paper's for every stream.

    ``batch_size``: samples of a step, of all processes together. ``lr`` is for steps of ``base_batch``
    samples (None: of ``batch_size``) and scales with their number. ``accumulate``: parts that each process
    does its share of a step in. ``lr_drops``: epochs after which the rate is a tenth, in place of the cosine.
    ``crop``: least area of random crops of keypoints. ``init``: a checkpoint to start from. ``patience``: end
    after so many tests without a better top-1.
    """

    epochs: Count
    batch_size: Count
    lr: Positive
    precision: Precision
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 3e-4
    clip_norm: Positive = 40.0
    flip: Fraction = 0.5
    base_batch: Count | None = None
    accumulate: Count = 1
    lr_drops: tuple[Count, ...] | None = None
    crop: Fraction | None = None
    init: str | None = None
    patience: Count | None = None

    @property
    def scaled_lr(self) -> float:
        """The learning rate of a step of ``batch_size`` samples."""
        return self.lr if self.base_batch is None else self.lr * self.batch_size / self.base_batch


@dataclass(frozen=True)
class EvaluateParams(Section):
    """The evaluation: ``clips`` samples of each clip, their scores averaged."""

    clips: Count = 1


@dataclass(frozen=True)
class TrainParams(Section):
    """The three runs of EPAM-Net: pose stream, RGB stream, then the whole network from both.

    All of them learn the labels of ``protocol`` and are tested on its test split.
    """

    KEY: ClassVar[str] = "training"  # of params.yaml

    protocol: str
    seed: Natural
    pose: RecipeParams
    rgb: RecipeParams
    epam: RecipeParams
    sample: SampleParams
    model: ModelParams
    evaluate: EvaluateParams = EvaluateParams()


@dataclass(frozen=True)
class AmfiSampleParams(Section):
    """Frames of a sample: ``clip_len`` skeletons, of which every so many have their RGB frame.

    Frames are scaled to ``rgb_size`` pixels where the store's are larger; 16 frames of 112 are the paper's.
    Training leaves out clips with a flag of ``exclude``.
    """

    clip_len: Count = 64
    rgb_frames: Count = 16
    # Of frames under 32 pixels ResNet3D leaves one value, which no batch normalisation takes.
    rgb_size: Annotated[int, Range(32)] = 112
    exclude: tuple[QualityFlag, ...] = ()


@dataclass(frozen=True)
class AmfiModelParams(Section):
    """What is left to choose of AMFI-Net: ``graph`` names the skeletons' joints.

    coco17: the cached keypoints; ntu25: Kinect's joints in space, where the dataset's poses are NTU's.
    ``dropout`` is the skeleton stream's; the fusion's squeeze is ``reduction`` times narrower than its input.
    """

    graph: Literal["coco17", "ntu25"] = "coco17"
    dropout: Fraction = 0.5
    reduction: Count = 16


@dataclass(frozen=True)
class FusionRecipeParams(RecipeParams):
    """The run that trains the fusion alone, on both streams as they are: keys as in skeleton and resnet.

    The loss is the cross-entropy and ``gate_weight`` (the paper's lambda) times the gate's own term.
    """

    gate_weight: NotNegative = 1.5


@dataclass(frozen=True)
class AmfiParams(Section):
    """The three runs of AMFI-Net: skeleton stream (AGCN), RGB stream (ResNet3D-18), then their fusion.

    All of them learn the labels of ``protocol`` and are tested on its test split.
    """

    KEY: ClassVar[str] = "amfi"  # of params.yaml

    protocol: str
    seed: Natural
    skeleton: RecipeParams
    resnet: RecipeParams
    amfi: FusionRecipeParams
    sample: AmfiSampleParams
    model: AmfiModelParams
    evaluate: EvaluateParams = EvaluateParams()

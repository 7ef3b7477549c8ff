"""All parameters of a dataset as one value: every number that a result depends on, checked against types.

The dataclasses are the schema: a wrong key or value is an error that names the whole key. What a result
does not depend on (folders, workers, devices) comes from the command line and is not here.
"""

from dataclasses import dataclass

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params.extraction import (
    CropParams,
    DetectParams,
    FramesParams,
    GivenBoxesParams,
    HeatmapParams,
    ImportedPoseParams,
    KinectPoseParams,
    NoDetectParams,
    PoseParams,
    RgbParams,
)
from harcache.pipeline.params.kinds import Section
from harcache.pipeline.params.layouts import FolderIndexParams, IndexParams, NtuIndexParams
from harcache.pipeline.params.networks import AMFI_NETWORKS
from harcache.pipeline.params.training import AmfiParams, TrainParams

__all__ = ["DatasetParams"]


@dataclass(frozen=True)
class DatasetParams(Section):
    """All parameters of one dataset: ``datasets.<name>`` of params.yaml.

    ``train`` is ``training.<name>`` and ``amfi`` is ``amfi.<name>``, each None where that is not there: with
    neither, the dataset is extracted only.
    """

    name: str
    index: IndexParams | FolderIndexParams | NtuIndexParams
    detect: DetectParams | GivenBoxesParams | NoDetectParams
    pose: PoseParams | ImportedPoseParams | KinectPoseParams
    crop: CropParams
    frames: FramesParams
    heatmap: HeatmapParams
    rgb: RgbParams
    train: TrainParams | None = None
    amfi: AmfiParams | None = None

    def __post_init__(self) -> None:
        if isinstance(self.detect, NoDetectParams) and isinstance(self.pose, PoseParams):
            raise HarcacheError(
                f"datasets.{self.name}.detect.backend is 'none', but pose.backend '{self.pose.backend}' "
                "needs boxes: choose a detector, or poses that are there already (import, kinect)"
            )
        for network in AMFI_NETWORKS:
            if self.amfi is not None and getattr(self.amfi, network).crop is not None:
                raise HarcacheError(
                    f"amfi.{self.name}.{network}.crop is set, but only heatmaps are drawn from random crops; "
                    "leave it out"
                )

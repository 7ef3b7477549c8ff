"""Where a dataset's files lie and how its stages run: everything that does not change a result.

One place knows the names of files, so that stages agree on them and dvc.yaml can be checked against them.
"""

from dataclasses import dataclass
from pathlib import Path

from harcache.pipeline.base.errors import StandstillError

__all__ = [
    "AUTO",
    "EXTRACTION",
    "Workspace",
    "choose_device",
]

EXTRACTION = ("index", "detect", "pose", "crop", "heatmap", "rgb")
"""The stages that make a dataset's tables and caches, in their order."""

AUTO = "auto"  # the device is chosen where the work is done, which may be another machine


@dataclass(frozen=True)
class Workspace:
    """The files of one dataset. ``data``: what the stages write; ``videos``: the raw files, only read."""

    dataset: str
    data: Path
    videos: Path
    metrics: Path
    weights_dir: Path | None = None
    device: str = "cpu"
    max_failed: float = 0.01  # part of the clips that may fail before the stage does
    max_skipped: float | None = None  # the same of clips skipped unasked; None: as params.yaml says, or none
    retry_failed: bool = False

    @classmethod
    def under(cls, project: Path, dataset: str, videos: Path, **options: object) -> "Workspace":
        """Lay the files out below ``project``, the folder of dvc.yaml; ``videos`` has one a dataset."""
        data = project / "data" / dataset
        metrics = project / "metrics" / f"{dataset}.json"
        return cls(dataset, data, videos / dataset, metrics, **options)  # type: ignore[arg-type]

    @property
    def manifest(self) -> Path:
        """One row a clip."""
        return self.data / "manifest.csv"

    @property
    def classes(self) -> Path:
        """Class names of each protocol."""
        return self.data / "classes.csv"

    @property
    def detections(self) -> Path:
        """Folder of HDF5 parts: boxes."""
        return self.data / "detections"

    @property
    def poses(self) -> Path:
        """Folder of HDF5 parts: keypoints."""
        return self.data / "poses"

    @property
    def crops(self) -> Path:
        """One box a clip."""
        return self.data / "crops.csv"

    @property
    def heatmaps(self) -> Path:
        """Zarr store: heatmap volumes and keypoints in the crop."""
        return self.data / "heatmaps.zarr"

    @property
    def rgb(self) -> Path:
        """Zarr store: cropped frames."""
        return self.data / "rgb.zarr"

    def failures(self, stage: str) -> Path:
        """Clips that were skipped or failed in ``stage``, with reasons."""
        return self.data / "failures" / f"{stage}.csv"

    def counts(self, stage: str) -> Path:
        """How many clips were ok, skipped and failed in ``stage``."""
        return self.data / "counts" / f"{stage}.json"

    def inputs(self, stage: str) -> Path:
        """Digests of what ``stage`` reads from outside the project: weights, files brought along."""
        return self.data / "inputs" / f"{stage}.json"

    @property
    def predictions(self) -> Path:
        """The class of each test clip and the one predicted."""
        return self.metrics.with_name(f"{self.dataset}-predictions.csv")

    @property
    def evaluation(self) -> Path:
        """Folder of the test clips' scores, and of tables and pictures made of them."""
        return self.data / "evaluation"

    def training(self, network: str) -> Path:
        """Folder of one training run: checkpoint, curves."""
        return self.data / "training" / network


def choose_device(name: str | None) -> str:
    """Return ``name``, or for None and `AUTO` the GPU if there is one.

    Raises StandstillError for a device that PyTorch can't use here.
    """
    import torch

    if name is None or name == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise StandstillError(
            f"device '{name}' can't be used ({reason}); give cpu, or leave --device out"
        ) from error
    return name

"""What a network reads of the caches and how a batch is made ready for it, the same in training, evaluation,
prediction and previews: a network is asked about what it learnt from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from harcache.cache.streaming.dataset import Batch, ClipDataset, Store
from harcache.cache.streaming.preparation import prepare
from harcache.cache.streaming.skeletons import prepare_skeletons
from harcache.pipeline.params import AmfiParams, AmfiSampleParams, DatasetParams, SampleParams, TrainParams
from harcache.pipeline.params.networks import EPAM_NETWORKS, Network

__all__ = ["NetworkInputs", "Section", "inputs_of", "preparation", "section_of"]

Section = TrainParams | AmfiParams
"""A dataset's entry in params.yaml for one of the two families of networks."""

_Poses = Literal["volume", "keypoints", "positions"]

_GRAPHS: dict[str, tuple[_Poses, int]] = {"coco17": ("keypoints", 17), "ntu25": ("positions", 25)}
"""Where a graph's joints are read from, and how many they are."""


@dataclass(frozen=True)
class NetworkInputs:
    """``rgb``: whether frames are read. ``poses``: which array of the heatmap store is, or None.

    ``joints``: how many joints a pose must have, None for any number. ``views``: a clip's samples in testing.
    """

    rgb: bool
    poses: _Poses | None
    joints: int | None
    clip_len: int
    rgb_frames: int
    views: int

    def dataset(
        self,
        clips: Sequence[tuple[str, int]],
        rgb: Store | None,
        heatmaps: Store | None,
        train: bool = False,
        **drawn: Any,
    ) -> ClipDataset:
        """Return samples of ``clips`` from those stores that are read; ``drawn``: seed, flip and crop."""
        return ClipDataset(
            clips,
            rgb=rgb if self.rgb else None,
            heatmaps=heatmaps if self.poses else None,
            heatmap_source=self.poses or "volume",
            train=train,
            clip_len=self.clip_len,
            rgb_frames=self.rgb_frames,
            views=1 if train else self.views,
            **drawn,
        )


def section_of(network: Network, params: DatasetParams) -> Section | None:
    """Return the entry of params.yaml that is for such a network, None where there is none."""
    return params.train if network in EPAM_NETWORKS else params.amfi


def inputs_of(network: Network, section: Section | None, graph: str | None = None) -> NetworkInputs:
    """Return what a network reads; without a ``section`` the defaults count.

    ``graph`` names the joints of a trained network's skeletons, in place of the section's.
    """
    views = section.evaluate.clips if section else 1
    if network in EPAM_NETWORKS:
        sample = section.sample if isinstance(section, TrainParams) else SampleParams()
        poses = None if network == "rgb" else sample.heatmaps
        return NetworkInputs(network != "pose", poses, None, sample.clip_len, sample.rgb_frames, views)
    frames = section.sample if isinstance(section, AmfiParams) else AmfiSampleParams()
    if network == "resnet":
        return NetworkInputs(True, None, None, frames.clip_len, frames.rgb_frames, views)
    if graph is None:
        graph = section.model.graph if isinstance(section, AmfiParams) else "coco17"
    return NetworkInputs(network == "amfi", *_GRAPHS[graph], frames.clip_len, frames.rgb_frames, views)


def preparation(network: Network, params: DatasetParams) -> Callable[..., Batch]:
    """Return what makes of a batch what a network takes; see `cache.streaming.preparation.prepare`."""
    if network in EPAM_NETWORKS:
        return partial(prepare, heatmap_size=params.heatmap.size, sigma=params.heatmap.sigma)
    sample = params.amfi.sample if params.amfi else AmfiSampleParams()
    return partial(prepare_skeletons, rgb_size=sample.rgb_size)

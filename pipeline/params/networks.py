"""The networks that are trained: the one list of their names, each of which is a section of params.yaml."""

from typing import Literal, get_args

__all__ = ["AMFI_NETWORKS", "EPAM_NETWORKS", "NETWORKS", "WHOLE_NETWORKS", "Network"]

Network = Literal["pose", "rgb", "epam", "skeleton", "resnet", "amfi"]
NETWORKS: tuple[Network, ...] = get_args(Network)
EPAM_NETWORKS, AMFI_NETWORKS = NETWORKS[:3], NETWORKS[3:]
"""Two families, each with its streams first, in the order in which they are trained."""

WHOLE_NETWORKS = (EPAM_NETWORKS[-1], AMFI_NETWORKS[-1])
"""Those that are made of both streams."""

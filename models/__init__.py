"""Networks, and the pretrained models behind them; nothing here knows of stages or of a dataset's files.

The names below load their modules when first used, since PyTorch alone takes seconds to import.
"""

from importlib import import_module
from typing import Any

__all__ = ["AMFINet", "EPAMNet", "PoseXShiftNet", "RGBXShiftNet", "load_released_checkpoint"]

_MODULES = {
    "AMFINet": "harcache.models.networks.amfi_net",
    "EPAMNet": "harcache.models.networks.epam_net",
    "PoseXShiftNet": "harcache.models.networks.xshiftnet",
    "RGBXShiftNet": "harcache.models.networks.xshiftnet",
    "load_released_checkpoint": "harcache.models.checkpoints",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'harcache.models' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)

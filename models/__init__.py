"""Networks, and the pretrained models behind them; nothing here knows of stages or of a dataset's files.

The names below load their modules when first used.
"""

from harcache.pipeline.base.lazy_names import lazy_names

__all__ = ["AMFINet", "EPAMNet", "PoseXShiftNet", "RGBXShiftNet", "load_released_checkpoint"]

__getattr__ = lazy_names(
    __name__,
    {
        "AMFINet": "harcache.models.networks.amfi_net",
        "EPAMNet": "harcache.models.networks.epam_net",
        "PoseXShiftNet": "harcache.models.networks.xshiftnet",
        "RGBXShiftNet": "harcache.models.networks.xshiftnet",
        "load_released_checkpoint": "harcache.models.checkpoints",
    },
)

"""Every number that a result depends on: the schema, how params.yaml is read and checked, and its table.

A section is a dataclass. Pydantic would bring four more packages into the layer that only reads
caches, and its messages would have to be translated: the checks here are smaller than that.
"""

from harcache.pipeline.params.extraction import *  # noqa: F403
from harcache.pipeline.params.extraction import __all__ as _extraction
from harcache.pipeline.params.kinds import Precision, QualityFlag
from harcache.pipeline.params.layouts import *  # noqa: F403
from harcache.pipeline.params.layouts import __all__ as _layouts
from harcache.pipeline.params.reading import dataset_names, from_mapping, load_params, to_mapping
from harcache.pipeline.params.schema import DatasetParams
from harcache.pipeline.params.training import *  # noqa: F403
from harcache.pipeline.params.training import __all__ as _training

__all__ = [
    "DatasetParams",
    "Precision",
    "QualityFlag",
    "dataset_names",
    "from_mapping",
    "load_params",
    "to_mapping",
    *_extraction,
    *_layouts,
    *_training,
]

"""Every number that a result depends on: the schema, how params.yaml is read and checked, and its table."""

from harcache.pipeline.params.schema import *  # noqa: F403
from harcache.pipeline.params.schema import __all__ as __all__

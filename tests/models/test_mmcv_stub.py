"""mmpose imports without mmcv's compiled operations, and says so where one is called."""

import importlib.util

import pytest

from models import mmcv_stub
from pipeline.errors import HarcacheError


def test_the_compiled_operations_can_be_imported_and_looked_up():
    mmcv_stub.install()
    mmcv_stub.install()
    assert importlib.util.find_spec("mmcv._ext") is not None
    assert importlib.import_module("mmcv.ops") is not None


def test_calling_a_compiled_operation_says_that_it_is_missing():
    mmcv_stub.install()
    extension = importlib.import_module("mmcv._ext")
    if extension.__spec__.loader is not None:
        pytest.skip("the full mmcv is installed")
    with pytest.raises(HarcacheError, match=r"mmcv\.ops\.nms was called, but mmcv is installed without"):
        extension.nms(None, None)

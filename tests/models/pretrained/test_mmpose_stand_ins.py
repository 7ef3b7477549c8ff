"""mmpose imports without mmcv's compiled operations, and says so where one is called."""

import importlib.util
import subprocess
import sys

import pytest

from harcache.models.pretrained import mmpose_stand_ins
from harcache.pipeline.base.errors import HarcacheError
from tests.projects import ROOT


def test_the_compiled_operations_can_be_imported_and_looked_up():
    mmpose_stand_ins.install()
    mmpose_stand_ins.install()
    assert importlib.util.find_spec("mmcv._ext") is not None
    assert importlib.import_module("mmcv.ops") is not None


def test_calling_a_compiled_operation_says_that_it_is_missing():
    mmpose_stand_ins.install()
    extension = importlib.import_module("mmcv._ext")
    if extension.__spec__.loader is not None:
        pytest.skip("the full mmcv is installed")
    with pytest.raises(HarcacheError, match=r"mmcv\.ops\.nms was called, but mmcv is installed without"):
        extension.nms(None, None)


def test_mmposes_models_load_without_what_only_training_needs():
    script = """
import sys
from harcache.models.pretrained import mmpose_stand_ins
mmpose_stand_ins.install()
with mmpose_stand_ins.without_training():
    from mmpose.models import heads
assert not {"scipy.stats", "sympy", "torch._dynamo", "matplotlib.pyplot"} & set(sys.modules)
assert "xtcocotools" not in sys.modules or mmpose_stand_ins.stands_in("xtcocotools")
assert not any(name.startswith("mmpose.datasets") for name in sys.modules)
heads.heatmap_heads.heatmap_head.pose_pck_accuracy()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "pose_pck_accuracy was called, but mmpose was loaded for inference" in done.stderr

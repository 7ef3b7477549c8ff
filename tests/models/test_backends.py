"""The backends that params.yaml may name are the modules that are there."""

from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from harcache.models import detectors, estimators
from harcache.pipeline.base.layers import LAYERS
from harcache.pipeline.params import DetectParams, PoseParams
from harcache.pipeline.params.backends import DETECTORS, POSE_ESTIMATORS

_FOLDERS = [(detectors, DETECTORS, DetectParams), (estimators, POSE_ESTIMATORS, PoseParams)]


@pytest.mark.parametrize(("package", "registered", "params"), _FOLDERS)
def test_every_module_is_registered_and_every_registered_backend_is_a_module(package, registered, params):
    (folder,) = map(Path, package.__path__)
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "registry"}
    assert modules == set(registered)
    for name in registered:
        assert callable(import_module(f"{package.__name__}.{name}").load)


@pytest.mark.parametrize(("package", "registered", "params"), _FOLDERS)
def test_params_yaml_may_name_what_is_registered_and_its_layer_exists(package, registered, params):
    assert get_args(get_type_hints(params)["backend"]) == tuple(registered)
    assert "backend" in {field.name for field in fields(params)}
    assert set(registered.values()) <= set(LAYERS)

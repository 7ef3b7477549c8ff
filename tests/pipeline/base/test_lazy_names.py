"""Promises of pipeline.base.lazy_names: public names are there, and what is behind them loads when used."""

import subprocess
import sys

import pytest

from harcache import cache, models
from harcache.cache import streaming
from harcache.pipeline.base.lazy_names import lazy_names


@pytest.mark.parametrize("package", [cache, streaming, models], ids=lambda package: package.__name__)
def test_every_public_name_of_a_package_is_there(package):
    for name in package.__all__:
        assert getattr(package, name) is not None


@pytest.mark.parametrize("package", ["cache", "cache.streaming", "models"])
def test_importing_a_package_loads_no_torch(package):
    program = f"import sys, harcache.{package}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'harcache\.cache' has no attribute 'ClipLoadr'"):
        cache.ClipLoadr  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'ClipLoadr'"):
        from harcache.cache import ClipLoadr  # noqa: F401


def test_a_name_comes_from_its_module():
    assert lazy_names("package", {"dumps": "json"})("dumps").__module__ == "json"

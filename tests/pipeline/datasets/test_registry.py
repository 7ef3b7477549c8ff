"""The layouts that params.yaml may name are the modules that scan videos, and poses, which has none."""

from importlib import import_module
from pathlib import Path

from harcache.pipeline import datasets
from harcache.pipeline.params import layouts
from harcache.pipeline.params.checks import choices_of


def test_each_layout_of_the_parameters_is_a_module_that_scans() -> None:
    (folder,) = datasets.__path__
    modules = [import_module(f"harcache.pipeline.datasets.{path.stem}") for path in Path(folder).glob("*.py")]
    # The registry's own function chooses among them.
    scanning = {module.__name__.rpartition(".")[2] for module in modules if hasattr(module, "scan")} - {
        "registry"
    }
    named = {name for kind in layouts.__all__ for name in choices_of(getattr(layouts, kind))}
    assert named == scanning | {"poses"}

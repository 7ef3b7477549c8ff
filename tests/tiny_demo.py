"""A tiny demo, drawn and taken through the stages once, and copies of it for tests that change files."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harcache.pipeline.datasets.demo import DemoSpec, generate_demo
from harcache.pipeline.params import (
    CropParams,
    DatasetParams,
    DetectParams,
    FramesParams,
    HeatmapParams,
    IndexParams,
    ModelParams,
    PoseParams,
    RecipeParams,
    RgbParams,
    SampleParams,
    TrainParams,
)
from harcache.pipeline.work.engine import Engine
from harcache.stages import crop, detect, heatmap, index, pose, rgb
from harcache.stages.shared.workspace import Workspace

# Six clips of 31 to 61 frames: two actions, one of two persons; performers 1 and 2 train, 3 tests.
TINY = DemoSpec(seed=2, performers=(1, 2, 3), cameras=1, actions=(5, 11))

_RECIPE = RecipeParams(epochs=1, batch_size=2, lr=0.01, precision="float32")
PARAMS = DatasetParams(
    "demo",
    IndexParams("demo"),
    DetectParams("ultralytics", "demo-yolo", 256, 0.4, 0.5, 4, "float32"),
    PoseParams("mmpose", "demo-hrnet", "demo-hrnet", False, 2, "float32"),
    CropParams(min_score=0.2),
    FramesParams(None),
    HeatmapParams(shard_rows=128, size=32),
    RgbParams(shard_rows=128, size=64),
    TrainParams(
        "xsub",
        seed=3,
        pose=_RECIPE,
        rgb=_RECIPE,
        epam=_RECIPE,
        sample=SampleParams(8, 4),
        model=ModelParams(width=8, rgb_blocks=(1, 1, 1), pose_blocks=(1, 1, 1)),
    ),
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def params() -> DatasetParams:
    """Parameters of the tiny demo."""
    return PARAMS


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny demo with its caches. No test changes it: see `own_demo`."""
    project = tmp_path_factory.mktemp("project")
    generate_demo(project / "videos" / "demo", TINY, workers=1)
    workspace = Workspace.under(project, "demo", project / "videos")
    with Engine(workers=0) as engine:
        for stage in (index, detect, pose, crop, heatmap, rgb):
            stage.run(PARAMS, workspace, engine)
    return workspace


@pytest.fixture(scope="session")
def trained(demo: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny demo with its three networks trained for one epoch. No test changes it."""
    # Lightning takes seconds to import, which most files here need not pay.
    from harcache.stages import train

    workspace = copy_of(demo, tmp_path_factory.mktemp("trained"))
    with Engine(workers=0) as engine:
        for network in ("pose", "rgb", "epam"):
            train.run(network, PARAMS, workspace, engine)
    return workspace


@pytest.fixture
def own_demo(demo: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the tiny demo, for one test to change; any number of its clips may fail."""
    return replace(copy_of(demo, tmp_path), max_failed=1.0)


def copy_of(workspace: Workspace, project: Path) -> Workspace:
    """Copy what a workspace holds into another project folder."""
    shutil.copytree(workspace.data, project / "data" / "demo")
    shutil.copytree(workspace.videos, project / "videos" / "demo")
    return Workspace.under(project, "demo", project / "videos")

"""What is learnt is what the videos hold and the recipe says, and bad use ends before the first step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harcache import cache
from harcache.cache.annotations import read_poses
from harcache.cache.streaming.dataset import ClipDataset
from harcache.cache.streaming.decoder_processes import default_workers
from harcache.cache.streaming.loader import ClipLoader
from harcache.models.checkpoints import load_checkpoint, load_network, save_checkpoint
from harcache.models.networks.epam_net import EPAMNet
from harcache.models.networks.xshiftnet import PoseXShiftNet
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import read_manifest
from harcache.pipeline.params import DatasetParams
from harcache.pipeline.video.frames import read_frames
from harcache.pipeline.work.engine import Engine
from harcache.stages import heatmap, rgb, train
from harcache.stages.shared.crop_table import Crop, read_crops
from harcache.stages.shared.units import inputs_from, parts_of
from harcache.stages.shared.workspace import Workspace
from harcache.stages.train import TrainingOptions
from harcache.stages.training import learning, memory_check, processes
from harcache.stages.training.inputs import preparation
from harcache.stages.training.learning import Learner
from harcache.stages.training.processes import launch
from harcache.stages.training.resume import Signals
from harcache.stages.training.run_folder import BEST
from harcache.stages.training.samples import CHECKPOINT, split_clips
from tests.tiny_demo import PARAMS

assert PARAMS.train is not None
_RECIPE = PARAMS.train.pose


def _run(network: Any, params: DatasetParams, workspace: Workspace) -> None:
    with Engine(workers=0) as engine:
        train.run(network, params, workspace, engine, TrainingOptions())


def _with(network: str = "pose", **recipe: Any) -> DatasetParams:
    assert PARAMS.train is not None
    changed = replace(getattr(PARAMS.train, network), **recipe)
    return replace(PARAMS, train=replace(PARAMS.train, **{network: changed}))


class _OnTheFly:
    """Stands for both stores: whatever row is asked for, its clip's video is decoded, or its poses drawn."""

    def __init__(self, workspace: Workspace, params: DatasetParams) -> None:
        self._params, self._workspace = params, workspace
        self._clips = {clip.id: clip for clip in read_manifest(workspace.manifest)}
        self._crops = read_crops(workspace.crops)
        self._starts = dict(
            zip(self._clips, np.cumsum([0, *(clip.frames for clip in self._clips.values())]), strict=False)
        )

    def rows(self, id: str) -> slice:
        start = int(self._starts[id])
        return slice(start, start + self._clips[id].frames)

    def reader(self, name: str) -> Any:
        size = self._params.rgb.size if name == "frames" else self._params.heatmap.size
        shape = (size, size, 3) if name == "frames" else (17, size, size)
        return _Reader(self._frame if name == "frames" else self._volume, shape)

    def _find(self, row: int) -> tuple[Any, Crop, int]:
        id = next(id for id in self._clips if row in range(self.rows(id).start, self.rows(id).stop))
        return self._clips[id], self._crops[id], row - self.rows(id).start

    def _frame(self, row: int) -> np.ndarray:
        clip, crop, number = self._find(row)
        frames = read_frames(self._workspace.videos / clip.video, clip.start, clip.end)
        return rgb.crop_frame(list(frames)[number], crop.box, self._params.rgb.size)

    def _volume(self, row: int) -> np.ndarray:
        clip, crop, number = self._find(row)
        inputs = inputs_from(self._workspace.poses, [clip])
        points, scores = read_poses(parts_of(self._workspace.poses, inputs.token)[clip.id], clip.id)
        x1, y1, x2, y2 = crop.box
        size = self._params.heatmap.size
        moved = (points[:, number : number + 1] - [x1, y1]) / [x2 - x1, y2 - y1] * size
        maps = heatmap.draw_heatmaps(moved, scores[:, number : number + 1], size, self._params.heatmap.sigma)
        return np.round(maps[0] * 255).clip(0, 255).astype(np.uint8)


class _Reader:
    dtype = np.dtype(np.uint8)

    def __init__(self, read: Any, row_shape: tuple[int, ...]) -> None:
        self._read, self.row_shape = read, row_shape

    def read_rows(self, rows: np.ndarray, out: np.ndarray) -> None:
        for row, place in zip(rows.tolist(), out, strict=True):
            place[...] = self._read(row)


def _losses(workspace: Workspace, params: DatasetParams, stores: tuple[Any, Any]) -> list[float]:
    """The loss of each step of EPAM-Net, fed from these stores of frames and heatmaps."""
    assert params.train is not None
    sample = params.train.sample
    clips = [(clip.id, clip.label("xsub")) for clip in split_clips(workspace, params.train, "train")]
    dataset = ClipDataset(
        clips, rgb=stores[0], heatmaps=stores[1], train=True, clip_len=sample.clip_len, rgb_frames=4
    )
    fabric = launch("cpu", "float32")
    torch.manual_seed(0)
    network = EPAMNet(12, width=8, rgb_blocks=(1, 1, 1), pose_blocks=(1, 1, 1))
    loaders = [ClipLoader(dataset, 2, workers=1) for _ in range(2)]
    recipe = replace(_RECIPE, epochs=3, lr=0.05)
    learner = Learner(fabric, network, recipe, loaders[0], loaders[1], preparation("epam", params), "test")
    seen: list[float] = []
    add = learner.curves.add

    def watched(split: str, clips: int, loss: Tensor, right: Tensor) -> None:
        seen.append(float(loss))
        add(split, clips, loss, right)

    learner.curves.add = watched  # type: ignore[method-assign]
    learner.learn(Signals(), float("inf"), lambda: None, lambda better: None)
    return seen


def test_the_caches_change_nothing_but_time(own_demo: Workspace, params: DatasetParams) -> None:
    exact = replace(params, rgb=replace(params.rgb, codec="zstd"))
    with Engine(workers=0) as engine:
        rgb.run(exact, own_demo, engine)
    decoded = _OnTheFly(own_demo, exact)
    cached = _losses(own_demo, exact, (cache.open(own_demo.rgb), cache.open(own_demo.heatmaps)))
    on_the_fly = _losses(own_demo, exact, (decoded, decoded))
    assert len(cached) == len(on_the_fly) > 6
    assert len(set(cached)) > 6
    np.testing.assert_allclose(cached, on_the_fly, rtol=1e-6)


def test_parts_of_a_step_learn_what_the_whole_does_where_no_statistics_are_taken(demo: Workspace) -> None:
    assert PARAMS.train is not None
    clips = [(clip.id, clip.label("xsub") or 0) for clip in split_clips(demo, PARAMS.train, "train")]
    dataset = ClipDataset(clips, heatmaps=cache.open(demo.heatmaps), train=True, clip_len=8, rgb_frames=4)
    weights = []
    for accumulate in (1, 2, 3):
        torch.manual_seed(0)
        network = PoseXShiftNet(12, width=8, blocks=(1, 1, 1), dropout=0.0)
        network.train = lambda mode=True, network=network: nn.Module.train(network, False)  # type: ignore[method-assign,misc]
        recipe = replace(_RECIPE, batch_size=3, accumulate=accumulate, epochs=2, lr=0.1)
        loaders = [ClipLoader(dataset, 3, workers=1) for _ in range(2)]
        learner = Learner(
            launch("cpu", "float32"),
            network,
            recipe,
            loaders[0],
            loaders[1],
            preparation("epam", PARAMS),
            "test",
        )
        learner.learn(Signals(), float("inf"), lambda: None, lambda better: None)
        weights.append({name: value.clone() for name, value in network.state_dict().items()})
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-6)


def test_processes_ask_each_other_without_waiting_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a barrier ends only when every GPU has done all that it was given")

    meeting = f"file://{tmp_path}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        monkeypatch.setattr(torch.distributed, "barrier", refuse)
        told = learning._SharedRequests((True, False), torch.device("cpu"))
        assert told.of_any() == (True, False)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("cores", "told", "workers"),
    [
        (8, {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}, 7),  # bound by srun
        (32, {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}, 7),  # not bound
        (32, {"TORCHELASTIC_RUN_ID": "0", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "4"}, 7),
        (16, {"TORCHELASTIC_RUN_ID": "0", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "4"}, 3),
        (16, {}, 15),
    ],
)
def test_each_gpu_has_the_cores_that_are_its_own(
    monkeypatch: pytest.MonkeyPatch, cores: int, told: dict[str, str], workers: int
) -> None:
    for name, value in (told | {"SLURM_CPUS_ON_NODE": "32"} if told else told).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    assert default_workers(torch.device("cuda"), processes.processes_sharing_cores()) == workers


def test_the_rate_scales_with_the_batch() -> None:
    assert replace(_RECIPE, lr=0.1, batch_size=24, base_batch=96).scaled_lr == pytest.approx(0.025)
    assert replace(_RECIPE, lr=0.1, batch_size=24).scaled_lr == 0.1


def test_random_crops_move_what_the_pose_stream_sees(own_demo: Workspace) -> None:
    params = _with(crop=0.56)
    assert params.train is not None
    sample = replace(params.train.sample, heatmaps="keypoints")
    _run("pose", replace(params, train=replace(params.train, sample=sample)), own_demo)
    with pytest.raises(
        HarcacheError, match=r"only samples of keypoints can be cropped at random; set sample"
    ):
        _run("pose", params, own_demo)


def test_files_that_the_system_keeps_in_a_containers_memory_are_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_check, "_CGROUP", tmp_path)
    mebi = 2**20
    (tmp_path / "memory.max").write_text(f"{512 * mebi}\n")
    (tmp_path / "memory.current").write_text(f"{510 * mebi}\n")  # as after its caches were built
    (tmp_path / "memory.stat").write_text(
        f"anon {100 * mebi}\nfile {410 * mebi}\nshmem {10 * mebi}\n"
        f"inactive_file {300 * mebi}\nactive_file {100 * mebi}\n"
    )
    assert memory_check._free(torch.device("cpu")) == 402 * mebi
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_check._free(torch.device("cpu")) > 402 * mebi


def test_a_batch_that_does_not_fit_is_refused_with_the_size_that_does(
    own_demo: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_check, "_free", lambda device: 40 * 2**20)
    with pytest.raises(
        HarcacheError, match=r"64 samples at once take .* of memory .*; (\d+) fit: set"
    ) as told:
        _run("pose", _with(batch_size=64), own_demo)
    fits = int(str(told.value).rpartition("batch_size to ")[2])
    assert 1 <= fits < 64
    _run("pose", _with(batch_size=fits), own_demo)
    with pytest.raises(HarcacheError, match="64 samples at once"):
        _run("pose", _with(batch_size=64), own_demo)
    monkeypatch.setattr(memory_check, "_free", lambda device: 2**10)
    with pytest.raises(HarcacheError, match="not even one sample fits in memory: it takes"):
        _run("pose", _with(batch_size=64), own_demo)


def test_a_stream_starts_from_a_checkpoint_whatever_its_classes(
    trained: Workspace, own_demo: Workspace, tmp_path: Path
) -> None:
    other = PoseXShiftNet(5, width=8, blocks=(1, 1, 1))
    save_checkpoint(tmp_path / "other.pt", other, ["a", "b", "c", "d", "e"])
    _run("pose", _with(init=str(tmp_path / "other.pt"), lr=1e-9), own_demo)
    made = load_checkpoint(own_demo.training("pose") / CHECKPOINT).state_dict
    for name, value in other.state_dict().items():
        if name.startswith("backbone") and name.endswith("weight"):
            torch.testing.assert_close(made[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "other", "message"),
    [
        (PoseXShiftNet, {"width": 16}, r"holds a network of .*'width': 16.*, but training\.model asks for"),
        (PoseXShiftNet, {"shift": 0.25}, r"holds a network of .*'shift': 0\.25.*, but training\.model"),
        (PoseXShiftNet, {"shift": 0, "temporal_kernel": 3}, "holds a network of .*'temporal_kernel': 3"),
        (PoseXShiftNet, {"in_channels": 25}, r"holds a network of .*'in_channels': 25"),
        (EPAMNet, {}, r"other\.pt holds a EPAMNet; expected a PoseXShiftNet"),
    ],
)
def test_a_checkpoint_of_another_network_is_no_start(
    own_demo: Workspace, tmp_path: Path, kind: Any, other: dict[str, Any], message: str
) -> None:
    blocks = {"blocks": (1, 1, 1)} if kind is PoseXShiftNet else {}
    save_checkpoint(tmp_path / "other.pt", kind(12, **{"width": 8} | blocks | other))
    with pytest.raises(HarcacheError, match=message):
        _run("pose", _with(init=str(tmp_path / "other.pt")), own_demo)


def test_streams_of_other_classes_are_refused(trained: Workspace, own_demo: Workspace) -> None:
    for stream in ("pose", "rgb"):
        network, _ = load_network(trained.training(stream) / CHECKPOINT)
        save_checkpoint(own_demo.training(stream) / CHECKPOINT, network, [f"class {n}" for n in range(12)])
    with pytest.raises(
        HarcacheError, match=r"network\.pt has 'class 0' as class 0, but the dataset 'demo' has"
    ):
        _run("epam", PARAMS, own_demo)


def test_the_network_that_is_kept_is_tested_whatever_the_number_of_epochs(
    own_demo: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_VALIDATIONS", 2)
    _run("pose", _with(epochs=5), own_demo)
    rows = (own_demo.training("pose") / "plots" / "accuracy.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows if ",test," in row] == ["2", "4", "5"]


def test_training_that_no_longer_gets_better_ends(
    own_demo: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    _run("pose", _with(epochs=30, lr=1e-9, patience=2), own_demo)
    tests = (own_demo.training("pose") / "plots" / "accuracy.csv").read_text().count("test")
    assert tests == 3
    assert load_checkpoint(own_demo.training("pose") / BEST).classes[4] == "drink from a cup"


def test_a_loss_that_is_no_number_is_told_and_not_saved(own_demo: Workspace) -> None:
    with pytest.raises(HarcacheError, match="the loss is no number any more at step"):
        _run("pose", _with(epochs=6, lr=1e30, clip_norm=1e30), own_demo)
    assert not (own_demo.training("pose") / CHECKPOINT).exists()

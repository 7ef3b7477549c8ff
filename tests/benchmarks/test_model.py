"""The networks' benchmark measures both forms, which compute the same, and names what it found."""

import pytest
import torch

from harcache.benchmarks.model import as_table, measure, time_training

# Slow: memory is measured in processes of its own, which load PyTorch.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results():
    return measure(32)


def test_both_forms_are_timed_and_weighed(results):
    forms = ("harcache", "conv3d")
    times = {f"{task}.{form}" for task in ("forward", "train") for form in forms}
    assert times <= set(results)
    assert {f"memory.{name}" for name in times} <= set(results)
    assert all(results[name] > 0 for name in times)


def test_the_table_says_how_many_times_faster(results):
    faster = results["train.conv3d"] / results["train.harcache"]
    (line,) = [
        line for line in as_table(results).splitlines() if line.startswith("train") and "faster" in line
    ]
    assert line.endswith(f"{faster:.2f} times faster")


def test_the_measurement_of_a_gpu_runs_without_one(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    assert set(time_training("cpu", 2, 32, 1)) == {"gpu.harcache", "gpu.conv3d", "gpu.compiled"}

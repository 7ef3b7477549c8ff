"""The training benchmark feeds one network in three ways and says how long each waits."""

import json

from torch import Tensor, nn

from harcache.benchmarks.timing import write_results
from harcache.benchmarks.train import as_table, measure


class _Small(nn.Module):
    """Takes what EPAM-Net takes, in no time."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.rgb, self.pose = nn.Linear(3, classes), nn.Linear(17, classes)

    def forward(self, rgb: Tensor, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        return self.rgb(rgb.mean((2, 3, 4))), self.pose(heatmaps.mean((2, 3, 4)))


def test_every_way_trains_and_is_measured(tmp_path):
    found = measure("cpu", "float32", batch=1, clips=1, seconds=0, network=_Small)
    write_results(tmp_path / "train.json", found)
    assert json.loads((tmp_path / "train.json").read_text()) == found
    assert found["ways"].keys() == {"harcache", "released", "one_batch"}
    for name, way in found["ways"].items():
        assert way["steps"] >= 1 and way["samples"] == way["steps"]
        assert 0 <= way["wait_share"] < 1
        assert name in as_table(found)
    # A batch that is there is not waited for; a way that decodes takes time.
    assert found["ways"]["one_batch"]["wait_share"] < 0.05
    assert found["ways"]["harcache"]["decode"] > 0

"""Promises of models.summary: every network is listed, with the released counts and the papers' figures."""

import pytest
import torch

from harcache.models.checkpoints import NETWORKS, build_network
from harcache.models.summary import as_table, input_shapes, summarise


@pytest.fixture(scope="module")
def summaries():
    return {row.name: row for row in summarise()}


@pytest.mark.parametrize(
    ("name", "parameters", "giga"),
    [
        ("RGB-X-ShiftNet", 2_006_010, 4.262),
        ("Pose-X-ShiftNet", 532_600, 3.356),
        ("X3D, RGB", 3_097_662, 4.732),
        ("X3D, pose", 586_180, 3.822),
        ("EPAM-Net", 2_538_717, 7.618),
        ("nested attention", 107, 0.0),
        ("attention of [38]", 2_507, 0.002),
    ],
)
def test_the_counts_are_the_released_ones(name, parameters, giga, summaries):
    assert summaries[name].parameters == parameters
    assert round(summaries[name].multiply_adds / 1e9, 3) == giga


def test_the_table_shows_our_figures_beside_the_papers(summaries):
    lines = as_table(list(summaries.values())).splitlines()
    assert len(lines) == len(summaries) + 1
    (line,) = [line for line in lines if line.startswith("EPAM-Net  ")]
    assert line.split()[-6:] == ["2.5", "M", "7.618", "G", "8.1", "G"]
    assert "2,538,717" in line
    assert len({len(line) for line in lines}) == 1


def test_the_number_of_classes_can_be_chosen():
    assert {row.name: row.parameters for row in summarise(120)}["EPAM-Net"] == 2_577_717


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_takes_the_inputs_that_are_named(name):
    with torch.device("meta"):
        network = build_network(name, {"num_classes": 5})
        outputs = network(*[torch.empty(2, *shape) for shape in input_shapes(network).values()])
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    assert logits.shape == (2, 5)

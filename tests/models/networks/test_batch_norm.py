"""Batch normalisation over processes gives what one process gives over all their samples."""

import socket
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from harcache.models.networks.batch_norm import synchronise


def _network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(64))


def _batch() -> torch.Tensor:
    return torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(2)) * 3 + 1


def _learn(network: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    loss = network(batch).square().mul(torch.arange(64)).sum()
    loss.backward()
    return {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


def _process(rank: int, ranks: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    network = synchronise(_network(), torch.device("cpu"))
    gradients = _learn(network, _batch()[rank::ranks])
    for gradient in gradients.values():
        distributed.all_reduce(gradient)
    network.eval()
    torch.save((gradients, network.state_dict(), network(_batch()).detach()), out / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 6])
def test_processes_with_unequal_shares_and_none_agree_with_one(tmp_path: Path, ranks: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fresh = get_context("forkserver")
    fresh.set_forkserver_preload(["tests.models.test_batch_norm"])
    processes = [fresh.Process(target=_process, args=(rank, ranks, port, tmp_path)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * ranks
    whole = _network()
    gradients = _learn(whole, _batch())
    whole.eval()
    for rank in range(ranks):
        found, state, output = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert state.keys() == whole.state_dict().keys()
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(state[name], value)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(output, whole(_batch()).detach())

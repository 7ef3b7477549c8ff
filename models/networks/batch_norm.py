"""Batch normalisation over the samples of all processes, also where PyTorch's own needs a GPU.

On a GPU it is PyTorch's. On the CPU sums in float64 are exchanged, so that two processes learn what one with
both their samples does.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["synchronise"]


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """Have every batch normalisation of a network take its statistics over all processes.

    Weights keep their names. The processes' shares of a batch may differ in size, and be empty.
    """
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.forward = partial(_normalise, module)  # type: ignore[method-assign]
    return network


def _normalise(module: _BatchNorm, x: Tensor) -> Tensor:
    if not module.training:
        return type(module).forward(module, x)
    over = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    exact = x.double()
    count = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float64)
    sums = all_reduce(torch.cat([exact.sum(over), exact.square().sum(over), count]))
    total = sums[-1].detach()
    mean, square = (sums[:-1] / total).chunk(2)
    variance = (square - mean.square()).clamp_min(0)
    _remember(module, mean.detach(), variance.detach(), total)
    scaled = (exact - mean.view(shape)) * (variance.view(shape) + module.eps).rsqrt()
    return torch.addcmul(module.bias.view(shape), scaled.to(x.dtype), module.weight.view(shape))


@torch.no_grad()
def _remember(module: _BatchNorm, mean: Tensor, variance: Tensor, total: Tensor) -> None:
    assert module.momentum is not None and module.num_batches_tracked is not None
    module.num_batches_tracked += 1
    for kept, new in ((module.running_mean, mean), (module.running_var, variance * total / (total - 1))):
        assert kept is not None
        kept.lerp_(new.to(kept.dtype), module.momentum)

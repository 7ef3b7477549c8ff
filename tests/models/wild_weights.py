"""Weights from a seed for tests that compare networks."""

import torch
from torch import nn


def wild(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every weight and statistic a value that matters, so that no part can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            draw = torch.randn(value.shape, generator=generator)
            fan = max(value[0].numel(), 1) if value.ndim > 1 else 4
            positive = name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1)
            value.copy_(0.5 + draw.abs() if positive else draw / fan**0.5)
    return network

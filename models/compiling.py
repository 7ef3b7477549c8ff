"""torch.compile for the networks here: minutes once, then fewer and larger steps on a GPU.

It is of no use on a CPU: there its sums over channels-last maps are slower than PyTorch's own.
"""

from typing import Any

import torch
from torch import nn

__all__ = ["compiled"]


def compiled(network: nn.Module) -> Any:
    """Return ``network`` compiled for inputs of one size; it shares its weights.

    Its convolutions stay channels-last. The compiler would give that up for all of them because of one, the
    attention's with more channels in than out, and depthwise convolutions then take five times as long.
    """
    return torch.compile(network, dynamic=False, options={"force_layout_optimization": True})

"""What the pretrained networks share: number format, repeatable arithmetic and batches of one size.

A batch always has the same size, filled up with blank images, since kernels are chosen by size and other
kernels round differently: so a clip's result does not depend on what shares its batches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from pipeline.errors import HarcacheError
from pipeline.params import Precision

__all__ = ["batch_size", "check_finite", "repeatable", "run_in"]


def batch_size(device: str) -> int:
    """Return how many images share a batch: few on a CPU, where blanks cost time, more on a GPU."""
    return 8 if device == "cpu" else 32


def run_in(precision: Precision, module: nn.Module) -> None:
    """Make ``module`` compute in ``precision``: its weights, and whatever comes in, are converted.

    Give the layers that turn features into coordinates "float32": bfloat16 holds 640 pixels to 2 pixels.
    """
    dtype = getattr(torch, precision)

    def convert(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    module.to(dtype)
    module.register_forward_pre_hook(lambda _module, inputs: tree_map(convert, inputs))


@contextmanager
def repeatable(precision: Precision) -> Iterator[None]:
    """Run networks without gradients, with the same kernels every time; float32 is never cut to TF32.

    On a CPU one thread computes: more would share out a sum, and their number show in its last digits. Other
    cores are for other workers.
    """
    tf32 = precision != "float32"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32),
        ):
            yield
    finally:
        torch.set_num_threads(threads)


def check_finite(output: torch.Tensor, network: str, precision: Precision) -> None:
    """Raise a HarcacheError where a network's output is not finite, which would pass for finding nobody."""
    if not output.isfinite().all():
        raise HarcacheError(
            f"{network}: the output in {precision} is not finite; "
            "set precision to float32, or replace the weights if it is float32 already"
        )

"""How the pretrained networks compute: in which number format, and with the same result every time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import Precision

__all__ = ["not_finite", "repeatable", "run_in"]


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


def not_finite(network: str, precision: Precision) -> HarcacheError:
    """Return the error for an output that is not finite, which would pass for finding nobody."""
    return HarcacheError(
        f"{network}: the output in {precision} is not finite; "
        "set precision to float32, or replace the weights if it is float32 already"
    )

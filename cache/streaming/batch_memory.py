"""Memory for one batch that forked processes share, in use for the whole of training.

It is anonymous memory, since containers keep /dev/shm small, and used again, since fresh memory costs a page
fault for each of its pages.
"""

from contextlib import suppress
from mmap import MADV_HUGEPAGE, mmap
from typing import Any
from weakref import finalize

import torch
from torch import Tensor

from harcache.cache.streaming.dataset import Batch

__all__ = ["BatchMemory"]


class BatchMemory:
    """The memory of one batch, as tensors and as arrays; ``pinned`` for copies to a GPU.

    ``copied`` is the event after the last copy to a GPU, and ``copying`` the events around it.
    """

    def __init__(self, like: Batch, pinned: bool) -> None:
        self.tensors = {name: _shared(value) for name, value in like.items()}
        self.arrays = {name: value.numpy() for name, value in self.tensors.items()}
        self.copied: Any = None
        self.copying: Any = None
        if pinned:
            cuda = torch.cuda.cudart()
            for value in self.tensors.values():
                torch.cuda.check_error(cuda.cudaHostRegister(value.data_ptr(), value.nbytes, 0))
                finalize(self, cuda.cudaHostUnregister, value.data_ptr())

    def wait_until_copied(self) -> None:
        """Return once a GPU has copied what is here, so that it can be overwritten."""
        if self.copied is not None:
            self.copied.synchronize()


def _shared(like: Tensor) -> Tensor:
    """Return memory for such a tensor that forked processes share, in huge pages: half as many faults."""
    memory = mmap(-1, like.nbytes)
    # A kernel may be built without huge pages.
    with suppress(OSError):
        memory.madvise(MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape)

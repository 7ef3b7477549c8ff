"""How glibc should treat what PyTorch frees on a CPU: speed for memory that stays with the process."""

import ctypes

__all__ = ["keep_freed_memory"]

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> None:
    """Keep what is freed in this process for its next use; do nothing where the C library is not glibc.

    Else each training step gives its activations back to the system and pays for every page again, which
    takes up to a third of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)

"""Ends a command together with whoever runs it, so that none works on unseen beside the next one."""

import ctypes
import os
import signal

__all__ = ["dask_setup", "end_with_parent"]

_PR_SET_PDEATHSIG = 1


def dask_setup(worker: object) -> None:
    """Have a Dask worker leave Ctrl-C to the command that started it, which ends it without its traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_with_parent() -> None:
    """Have Linux kill this process when its parent dies; its Dask workers end by themselves then.

    A kill is as good as any end: whatever moment it comes at, the next run goes on from what is finished.
    """
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have died just before.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)

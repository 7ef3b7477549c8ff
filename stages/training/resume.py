"""Where a training run stands, on disk, and how it is asked to stop: a run that ends early only pauses.

The file holds plain values and tensors under a checksum, so that a damaged or foreign one is never believed.
"""

import hashlib
import io
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from harcache.models.torch_files import read_torch
from harcache.pipeline.base.errors import HarcacheError, refuse_newer
from harcache.pipeline.base.files import write_atomically

__all__ = ["STATE", "Signals", "read_state", "requeue", "stopping", "write_state"]

STATE = "state.pt"

_MAGIC = b"harcache-training-1\n"
_DIGEST_BYTES = 16
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state of plain values and tensors, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    write_atomically(path, _MAGIC + _digest(content) + content)


def read_state(path: Path) -> dict[str, Any] | None:
    """Read what ``write_state`` wrote, tensors on the CPU; None where there is no file.

    Raises:
        HarcacheError: the file is damaged or something else.
    """
    if not path.exists():
        return None
    data = path.read_bytes()
    content = data[len(_MAGIC) + _DIGEST_BYTES :]
    refuse_newer(data[: len(_MAGIC)].decode("latin-1").strip(), _MAGIC.decode().strip(), path)
    if not data.startswith(_MAGIC) or data[len(_MAGIC) :][:_DIGEST_BYTES] != _digest(content):
        raise HarcacheError(
            f"{path} is damaged or no state of a training run; delete it, and training starts anew"
        )
    try:
        state = read_torch(content)
        if not isinstance(state, dict):
            raise ValueError(f"it is a {type(state).__name__}")
        return state
    except ValueError as error:
        raise HarcacheError(
            f"{path} holds more than plain values and tensors ({error}); delete it, and training starts anew"
        ) from error


class Signals:
    """The last signal that asked this process to stop, or None."""

    received: signal.Signals | None = None


@contextmanager
def stopping() -> Iterator[Signals]:
    """Catch SIGTERM, SIGINT and SIGUSR1 (SLURM's usual warning); a second SIGINT interrupts at once."""
    signals = Signals()

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signals.received == signal.SIGINT:
            raise KeyboardInterrupt
        signals.received = signal.Signals(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def requeue(job: str) -> None:
    """Have SLURM start a job again later; HarcacheError where it does not."""
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode != 0:
        raise HarcacheError(
            f"SLURM did not requeue job {job} ({done.stderr.strip()}); submit it again, it goes on from there"
        )


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()

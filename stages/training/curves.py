"""Loss and accuracy by epoch, and what is logged beside them, for `dvc plots`, `dvc exp` and TensorBoard.

All rows are kept with the training's state and written anew when it goes on, so that a log has no gap and
nothing twice.
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.layers import LAYERS, is_there, load
from harcache.pipeline.base.progress import notice
from harcache.pipeline.base.tables import write_table

__all__ = ["Curves", "Journal"]


class Curves:
    """Sums of the epoch that is open, by split, and a row of each that is closed.

    Sums lie on the network's device as (clips, loss, right) float64: reading one in each step would make the
    host wait for a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: dict[str, Tensor] = defaultdict(
            lambda: torch.zeros(3, dtype=torch.float64, device=device)
        )
        self.rows: list[tuple[int, str, float, float]] = []

    def add(self, split: str, clips: int, loss: Tensor, right: Tensor) -> None:
        """Count a step: of ``clips`` the mean loss and how many were right."""
        counted = torch.full_like(right, clips)
        self._open[split] += torch.stack([counted, clips * loss.double(), right])

    def close(self, split: str, epoch: int, over_all: Callable[[Tensor], Tensor]) -> float:
        """End a split's epoch; ``over_all`` sums over processes. Return the top-1 accuracy."""
        sums = self._open[split]  # zeros where this process had no samples
        del self._open[split]
        clips, loss, right = over_all(sums).tolist()
        self.rows.append((epoch, split, loss / clips, right / clips))
        return right / clips

    def last(self, epoch: int) -> dict[str, float]:
        """Return an epoch's rows by name, such as ``train/loss`` and ``test/accuracy``."""
        rows = [row for row in self.rows if row[0] == epoch]
        return {f"{split}/loss": loss for _, split, loss, _ in rows} | {
            f"{split}/accuracy": right for _, split, _, right in rows
        }

    def is_finite(self) -> bool:
        """Whether all losses were numbers."""
        return all(bool(sums.isfinite().all()) for sums in self._open.values()) and all(
            math.isfinite(loss) for _, _, loss, _ in self.rows
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything, as plain values and tensors."""
        return {"open": {split: sums.cpu() for split, sums in self._open.items()}, "rows": list(self.rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self._open.update({split: sums.to(self._device) for split, sums in state["open"].items()})
        self.rows = [tuple(row) for row in state["rows"]]

    def write(self, folder: Path) -> None:
        """Write loss.csv and accuracy.csv."""
        for place, name in ((2, "loss"), (3, "accuracy")):
            rows = ((row[0], row[1], f"{row[place]:.5f}") for row in sorted(self.rows))
            write_table(folder / f"{name}.csv", ("epoch", "split", name), rows)

    def latest(self) -> dict[str, dict[str, float]]:
        """Return the last row of each split: its epoch, loss and accuracy."""
        return {
            split: {"epoch": epoch, "loss": loss, "accuracy": right}
            for epoch, split, loss, right in sorted(self.rows)
        }

    def summary(self) -> str:
        """Return the last row of each split in words."""
        return "; ".join(
            f"{split}: loss {last['loss']:.3f}, top-1 {last['accuracy']:.1%}"
            for split, last in self.latest().items()
        )


class Journal:
    """What was measured in each epoch, in DVCLive's files and, on request, TensorBoard's.

    Raises HarcacheError in a Git repository without a commit, and where what is asked for is not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        self._live = _live(folder / "live")
        self._tensorboard = _tensorboard(folder / "tensorboard") if tensorboard else None

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add an epoch."""
        if self._live is not None:
            self._live.step = epoch
            for name, value in values.items():
                self._live.log_metric(name, value)
            self._live.make_summary()
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, epoch)

    def end(self) -> None:
        """Finish the files."""
        if self._live is not None:
            self._live.end()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _live(folder: Path) -> Any:
    """Open DVCLive's files, or None where it isn't installed and DVC does not wait for them."""
    if not is_there("dvclive") and "DVC_STAGE" not in os.environ:
        notice(f"DVCLive is not installed, so {folder} is not written; run: {LAYERS['pipeline'].command}")
        return None
    # Seconds to import.
    live = load("dvclive")
    try:
        return live.Live(str(folder), dvcyaml=None, save_dvc_exp=False, report=None, monitor_system=False)
    except Exception as error:
        # Its errors about Git come from a package of its own.
        if not type(error).__module__.startswith("scmrepo."):
            raise
        raise HarcacheError(
            f"DVCLive asks Git which commit it is, and got '{error}'; commit once, then train"
        ) from error


def _tensorboard(folder: Path) -> Any:
    return load("torch.utils.tensorboard").SummaryWriter(str(folder))

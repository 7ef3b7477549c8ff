"""What a training run leaves in its folder: its state, checkpoints, curves and logs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harcache.models.checkpoints import save_checkpoint
from harcache.pipeline.base.progress import say
from harcache.stages.training.curves import Journal
from harcache.stages.training.learning import Learner
from harcache.stages.training.resume import STATE, read_state, write_state
from harcache.stages.training.samples import CHECKPOINT

__all__ = ["BEST", "RunFolder"]

BEST = "best.pt"


@dataclass
class RunFolder:
    """What a run leaves: its state, checkpoints, curves and logs. Only the first process writes."""

    path: Path
    learner: Learner
    name: str
    depends_on: dict[str, str]
    classes: Sequence[str]
    extra: dict[str, Any]
    rank: int
    journal: Journal | None = None
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def resume(self, restart: bool) -> None:
        """Take up the state that is there, or say why not."""
        state = None if restart else read_state(self.path / STATE)
        if state is None:
            return
        before = state["depends_on"]
        changed = [what for what, value in self.depends_on.items() if before.get(what) != value]
        if changed:
            self._print(f"its {' and '.join(changed)} changed, so training starts anew")
            return
        self.learner.load_state_dict(state["learner"])
        self.logged = [(epoch, values) for epoch, values in state["logged"]]
        self._print(f"goes on from step {self.learner.step} of {self.learner.steps}")

    def open_journal(self, tensorboard: bool) -> None:
        """Start the logs, with what was logged before the run was stopped."""
        if self.rank == 0:
            self.journal = Journal(self.path, tensorboard)
            for epoch, values in self.logged:
                self.journal.log(epoch, values)

    def log_epoch(self, better: bool) -> None:
        """Log an epoch that has ended, and keep the network if it was never better."""
        learner = self.learner
        waits = learner.last_waits
        values = learner.curves.last(learner.epoch) | {
            "lr": learner.rate,
            "wait_share": waits.share,
            "samples_per_second": waits.samples_per_second * learner.processes,
        }
        if learner.device.type == "cuda":
            values["gpu_memory"] = float(torch.cuda.max_memory_allocated(learner.device))
        self.logged.append((learner.epoch, values))
        if self.journal is not None:
            self.journal.log(learner.epoch, values)
        if better and self.rank == 0:
            save_checkpoint(self.path / BEST, learner.network, self.classes, self.extra)

    def save(self) -> None:
        """Write the state; all processes take part in making it."""
        learner = self.learner.state_dict()
        if self.rank == 0:
            state = {"depends_on": self.depends_on, "learner": learner, "logged": self.logged}
            write_state(self.path / STATE, state)

    def finish(self, what: str) -> None:
        """Write the trained network and its curves, and say how it went."""
        if self.journal is None:
            return
        self.journal.end()
        learner = self.learner
        learner.curves.write(self.path / "plots")
        save_checkpoint(self.path / CHECKPOINT, learner.network, self.classes, self.extra)
        waits = learner.waits
        self._print(f"{what}; {learner.curves.summary()}")
        self._print(
            f"{waits.samples_per_second * learner.processes:.1f} samples a second, {waits.share:.1%} of the "
            "time waiting for batches"
        )
        if warning := waits.warning():
            self._print(warning)

    def _print(self, text: str) -> None:
        if self.rank == 0:
            say(f"{self.name}: {text}")

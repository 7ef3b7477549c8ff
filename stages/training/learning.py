"""The steps of training: one network, one recipe, any number of processes, stopped and resumed at any step.

Lightning Fabric brings devices, processes and precisions; the loop is written out, since each thing that the
next step depends on must be in the state that is saved.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

from harcache.cache.streaming.dataset import Batch
from harcache.cache.streaming.input_wait import Waits
from harcache.cache.streaming.loader import ClipLoader
from harcache.models import compiling
from harcache.models.networks.amfi_net import amfi_loss
from harcache.models.networks.batch_norm import synchronise
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.progress import progress
from harcache.pipeline.params import FusionRecipeParams, RecipeParams
from harcache.stages.training.curves import Curves
from harcache.stages.training.resume import Signals
from harcache.stages.training.trained import outputs_of

__all__ = ["Learner", "loss_of"]

_VALIDATIONS = 6  # times that the curves look at the test split, at least


class _Task(nn.Module):
    """What is distributed and compiled: a batch to the sum of its samples' losses and how many were right."""

    def __init__(self, network: nn.Module, recipe: RecipeParams) -> None:
        super().__init__()
        self.network, self._recipe = network, recipe

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return loss_of(self.network, batch, self._recipe)


def loss_of(network: nn.Module, batch: Mapping[str, Tensor], recipe: RecipeParams) -> tuple[Tensor, Tensor]:
    """Return the sum of the heads' cross-entropies, each a mean over the batch, and how many are right.

    AMFI-Net's loss has its gate's term too, as much of it as the recipe says.
    """
    outputs, labels = outputs_of(network, batch), batch["label"]
    if len(labels) == 0:
        # Another process has samples, and waits for this one's gradients.
        return torch.stack([output.sum() for output in outputs]).sum(), torch.zeros((), device=labels.device)
    if isinstance(recipe, FusionRecipeParams):
        logits, gate = outputs
        return amfi_loss(logits, gate, labels, recipe.gate_weight), (logits.argmax(1) == labels).sum()
    loss = torch.stack([functional.cross_entropy(head, labels) for head in outputs]).sum()
    return loss, (torch.stack(outputs).sum(0).argmax(1) == labels).sum()


class Learner:
    """One training run (EPAM-Net, section 4.2): SGD with momentum, clipped gradients, a rate for each step.

    ``prepare`` makes of a loader's batch what the network takes. ``state_dict`` is all that the run's future
    depends on, but for what it was made from.
    """

    def __init__(
        self,
        fabric: Fabric,
        network: nn.Module,
        recipe: RecipeParams,
        loader: ClipLoader,
        test_loader: ClipLoader,
        prepare: Callable[..., Batch],
        label: str,
        compiled: bool = False,
    ) -> None:
        self.network, self.curves = network, Curves(fabric.device)
        self.step, self.best, self.stale = 0, -1.0, 0
        self.waits, self.last_waits, self._counted = Waits(), Waits(), Waits()
        self._label = label
        self._requests: _SharedRequests | None = None
        self._fabric, self._recipe, self._prepare = fabric, recipe, prepare
        self._loader, self._test_loader = loader, test_loader
        if fabric.world_size > 1:
            synchronise(network, fabric.device)
        self._task = _Task(network, recipe)
        optimizer = torch.optim.SGD(
            [weight for weight in network.parameters() if weight.requires_grad],
            lr=recipe.scaled_lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        task: Any = compiling.compiled(self._task) if compiled else self._task
        self._module, self._optimizer = fabric.setup(task, optimizer)
        self._rates = _schedule(optimizer, recipe, len(loader))

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self._fabric.device

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self._fabric.world_size

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._rates.get_last_lr()[0])

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self.step // len(self._loader)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self._recipe.epochs * len(self._loader)

    @property
    def over(self) -> bool:
        """Whether the run is at its end, or has long got no better."""
        patience = self._recipe.patience
        return self.step == self.steps or (patience is not None and self.stale >= patience)

    def learn(
        self,
        signals: Signals,
        save_every: float,
        save: Callable[[], None],
        after_epoch: Callable[[bool], None],
    ) -> bool:
        """Train to the end; return False where a signal asked to stop before, its last step saved.

        ``save`` is called every so many seconds and at a stop, in all processes at once; ``after_epoch``
        after each epoch, with whether the network has never been better on the test split.
        """
        saved = time.monotonic()
        stop = due = False

        def save_now() -> None:
            nonlocal saved
            self._check_loss()
            save()
            saved = time.monotonic()

        with progress(self.steps, self._label, unit="steps", done=self.step) as bar:
            while not self.over:
                self._module.train()
                for batch in self._loader:
                    self._learn_from(batch)
                    bar.advance()
                    stop, due = self._requested_anywhere(
                        signals.received is not None, time.monotonic() - saved >= save_every
                    )
                    # The last step of an epoch is saved with what follows it.
                    if (stop or due) and self.step % len(self._loader):
                        save_now()
                        if stop:
                            return False
                after_epoch(self._end_epoch())
                if stop or due:
                    save_now()
                if stop and not self.over:
                    return False
            save_now()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on; all processes must ask at once."""
        return {
            "step": self.step,
            "best": self.best,
            "stale": self.stale,
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rates": self._rates.state_dict(),
            "precision": self._fabric.strategy.precision.state_dict(),
            "loader": self._loader.state_dict(),
            "curves": self.curves.state_dict(),
            "waits": asdict(self.waits),
            "random": self._random_states(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``.

        With another number of processes than then, dropout is drawn from the seed and the step instead.
        """
        self.step, self.best, self.stale = state["step"], state["best"], state["stale"]
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._rates.load_state_dict(state["rates"])
        self._fabric.strategy.precision.load_state_dict(state["precision"])
        self._loader.load_state_dict(state["loader"])
        self.curves.load_state_dict(state["curves"])
        self.waits = Waits(**state["waits"])
        self._restore_random(state["random"])

    def _learn_from(self, batch: Batch) -> None:
        """Do one step: every sample of all processes counts alike, whatever share each of them has."""
        processes, parts = self._fabric.world_size, self._recipe.accumulate
        samples = self._loader.samples_in(self.step % len(self._loader))
        share = math.ceil(samples / processes)
        size = math.ceil(share / parts)
        self._optimizer.zero_grad()
        for first in range(0, share, size):
            part = self._prepare(_rows(batch, first, first + size), self._fabric.device)
            count = len(part["label"])
            later = first + size < share and processes > 1
            with self._fabric.no_backward_sync(self._module) if later else nullcontext():
                loss, right = self._module(part)
                self._fabric.backward(loss * (count * processes / samples))
            self.curves.add("train", count, loss.detach(), right)
        self._fabric.clip_gradients(
            self._module, self._optimizer, max_norm=self._recipe.clip_norm, error_if_nonfinite=False
        )
        self._optimizer.step()
        self._rates.step()
        self.step += 1

    def _end_epoch(self) -> bool:
        """Close the epoch's curves, test where it is due, and return whether that was the best test."""
        self.curves.close("train", self.epoch, self._sum)
        self._check_loss()
        found, self._counted = self._loader.waits.since(self._counted), replace(self._loader.waits)
        self.waits, self.last_waits = self.waits.plus(found), found
        # The last epoch's is the network that is kept.
        if self.epoch % max(1, self._recipe.epochs // _VALIDATIONS) and self.step < self.steps:
            return False
        self._module.eval()
        with torch.no_grad(), self._fabric.autocast():
            for batch in self._test_loader:
                part = self._prepare(batch, self._fabric.device)
                if len(part["label"]):
                    loss, right = self._task(part)
                    self.curves.add("test", len(part["label"]), loss, right)
        accuracy = self.curves.close("test", self.epoch, self._sum)
        better = accuracy > self.best
        self.best, self.stale = (accuracy, 0) if better else (self.best, self.stale + 1)
        return better

    def _check_loss(self) -> None:
        if not self.curves.is_finite():
            raise HarcacheError(
                f"the loss is no number any more at step {self.step}; lower lr, or use another precision"
            )

    def _sum(self, value: Tensor) -> Tensor:
        total: Any = self._fabric.all_reduce(value, reduce_op="sum")
        return total

    def _requested_anywhere(self, *asked: bool) -> tuple[bool, ...]:
        """Return which of these any process asked for; with several processes, a step ago.

        So nobody waits for the step at hand, and all stop at the same one.
        """
        if self._fabric.world_size == 1:
            return asked
        before, self._requests = self._requests, _SharedRequests(asked, self._fabric.device)
        return before.of_any() if before else (False,) * len(asked)

    def _random_states(self) -> dict[str, Tensor]:
        """The generators' states of all processes, (processes, bytes) by kind of device."""
        own = {"cpu": torch.get_rng_state()}
        if self._fabric.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self._fabric.device)
        world = self._fabric.world_size
        gathered: dict[str, Any] = {
            kind: self._fabric.all_gather(state.to(self._fabric.device)) for kind, state in own.items()
        }
        return {kind: states.reshape(world, -1).cpu() for kind, states in gathered.items()}

    def _restore_random(self, states: Mapping[str, Tensor]) -> None:
        rank = self._fabric.global_rank
        if len(states["cpu"]) != self._fabric.world_size:
            torch.manual_seed(hash((self.step, rank)))
            return
        # Of their own memory: PyTorch reads a row's from where its table begins, or crashes.
        own = {kind: each[rank].clone() for kind, each in states.items()}
        torch.set_rng_state(own["cpu"])
        if "cuda" in own and self._fabric.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"], self._fabric.device)


class _SharedRequests:
    """What this process asks for in a step, sent to all others while a GPU works on.

    Fabric's own sum would have each host wait for all processes and their devices first.
    """

    def __init__(self, asked: Sequence[bool], device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        total = torch.tensor(asked, dtype=torch.float32, pin_memory=on_gpu).to(device, non_blocking=True)
        torch.distributed.all_reduce(total)
        self._total = total.to("cpu", non_blocking=True)
        self._there = torch.cuda.current_stream(device).record_event() if on_gpu else None

    def of_any(self) -> tuple[bool, ...]:
        """Wait for the answers: which of these any process asked for."""
        if self._there is not None:
            self._there.synchronize()
        return tuple(bool(value) for value in self._total.tolist())


def _rows(batch: Mapping[str, Tensor], first: int, end: int) -> Batch:
    return {name: value[first:end] for name, value in batch.items()}


def _schedule(optimizer: torch.optim.Optimizer, recipe: RecipeParams, steps: int) -> Any:
    """A cosine to zero by step, or a tenth after each of ``lr_drops``; ``steps`` in an epoch."""
    schedules = torch.optim.lr_scheduler
    if recipe.lr_drops is not None:
        return schedules.MultiStepLR(optimizer, [epoch * steps for epoch in recipe.lr_drops])
    return schedules.CosineAnnealingLR(optimizer, recipe.epochs * steps)

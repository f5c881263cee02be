"""What the loop trains, how long and where, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from distill.data.loader import Batch
from distill.training.best import BestWeights
from distill.training.evaluate import Scores


class Task(Protocol):
    """What a stage trains."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and kept: the model, or a mean of its weights over the steps."""
        ...

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from batch `start` on."""
        ...

    def step(self, batch: Batch, epoch: int, number: int) -> dict[str, Tensor]:
        """Trains on one batch; `number` steps came before in the whole run. Named losses, detached."""
        ...

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Called once after each epoch (counted from 0); returns metrics of the stage's own."""
        ...

    def check(self) -> None:
        """Raises a UserError when training went wrong in a way that the losses do not show."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides model and optimiser."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...


Part = Literal["validation", "test"]


@dataclass(frozen=True)
class Plan:
    """How long, where, and how it is judged."""

    stage: str
    run: Path  # the run folder
    digest: str  # of everything that decides the result; a saved state of another digest is refused
    epochs: int
    steps: int  # in an epoch
    schedule: Scheduler
    evaluate: Callable[[nn.Module, Part], Scores]
    test_every_epoch: bool = True  # else the test part is scored once, at the end: last and best weights
    patience: int = 0  # epochs without a better one by validation after which training ends; 0: it never ends early

    @property
    def state(self) -> Path:
        """Where the resume state lies."""
        return self.run / "state" / f"{self.stage}.safetensors"

    @property
    def best_weights(self) -> BestWeights:
        """Weights of the best epoch by validation."""
        return BestWeights(self.run / "best.safetensors", self.state)


@dataclass
class Progress:
    """How far training has come."""

    epoch: int = 0
    step: int = 0  # in this epoch
    sums: dict[str, float] = field(default_factory=dict)  # of the losses in this epoch
    told: dict[str, int] = field(default_factory=dict)  # steps in which each loss was: not every step judges labels
    epoch_seconds: float = 0.0  # spent in this epoch, over all its interruptions
    seconds: float = 0.0  # spent in the epochs before
    last: dict[str, float] = field(default_factory=dict)  # metrics of the last epoch
    best: dict[str, float] = field(default_factory=dict)  # metrics of the best epoch by validation
    best_sha256: str = ""  # of its weights; "" before there are any

    def over(self, plan: Plan) -> bool:
        """Whether training has come to its end."""
        waited = self.epoch - int(self.best.get("epoch", self.epoch))
        return self.epoch >= plan.epochs or (plan.patience > 0 and waited >= plan.patience)

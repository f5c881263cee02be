"""The student's objective: cross-entropy and the recipe's losses, weighted, over the epochs.

loss = hard_weight * mean CE + sum over losses of weight * ramp(epoch) * mean loss
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distill.losses.lesson import Lesson, Outputs
from distill.losses.logit import kd
from distill.losses.soft import cross_entropy
from distill.losses.terms import Sizes, Term, build_term
from distill.recipe.losses import LossRecipe, TermRecipe, in_use


class Criterion(nn.Module):
    """A settled `[student.loss]` as a function of the student's outputs and a lesson.

    Args:
        loss: settled, see `recipe.losses.settle`.
        sizes: of what the losses' own parameters are made.
        epochs: of the student.
    """

    def __init__(self, loss: LossRecipe, sizes: Sizes, epochs: int) -> None:
        super().__init__()
        assert loss.hard_weight is not None, "the loss is not settled"
        self.hard_weight, self.epochs = loss.hard_weight, epochs
        self.weighted = [(str(name), weight, term) for name, term, weight in in_use(loss)]
        self.terms = nn.ModuleDict({name: build_term(name, term, sizes) for name, term, _ in in_use(loss)})

    def forward(self, student: Outputs, lesson: Lesson, epoch: int) -> dict[str, Tensor]:
        """The losses' means over the batch, by name, unweighted; `loss` is their weighted sum.

        Args:
            student: outputs [B, ...] with gradients.
            lesson: of the same images.
            epoch: from 0.

        Returns:
            Scalars: `loss`, `hard`, and one for each loss.
        """
        hard = lesson.over_targets(partial(cross_entropy, student.logits)).mean()
        losses = {"hard": hard}
        total = self.hard_weight * hard
        for name, weight, term in self.weighted:
            value = self.terms[name](student, lesson, epoch).mean()
            losses[name] = value
            total = total + weight * ramp(term, epoch, self.epochs) * value
        return {"loss": total, **losses}

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """What the losses learn themselves, for the optimiser: projectors decay, biases too; a temperature does not."""
        parameters = list(self.parameters())
        groups = [([p for p in parameters if p.dim()], weight_decay), ([p for p in parameters if not p.dim()], 0.0)]
        return [{"params": some, "weight_decay": decay} for some, decay in groups if some]

    def end_epoch(self) -> dict[str, float]:
        """Called after each epoch; what a log should hold."""
        found: dict[str, float] = {}
        for term in self.terms.values():
            assert isinstance(term, Term)
            found |= term.end_epoch()
        return found


def ramp(term: TermRecipe, epoch: int, epochs: int) -> float:
    """The factor on a weight in an epoch (from 0): up in `warmup_epochs` steps, down in `cooldown_epochs`.

    With w epochs of warm-up it is 1/w, 2/w, ..., 1: DKD's min(epoch / w, 1), whose epochs count from 1. The last of c
    epochs of cool-down has 1/(c + 1).
    """
    up = (epoch + 1) / term.warmup_epochs if term.warmup_epochs else 1.0
    down = (epochs - epoch) / (term.cooldown_epochs + 1) if term.cooldown_epochs else 1.0
    return min(1.0, up, down)


@torch.no_grad()
def teaching_metrics(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """How near a student is to its teacher on a batch: logits [B, C] twice -> scalars.

    `agreement` is the share of images whose likeliest class is the same, `teacher_kl` the mean KL(teacher || student)
    at T = 1, in nats.
    """
    agree = (student.argmax(dim=-1) == teacher.argmax(dim=-1)).float().mean()
    return {"agreement": agree, "teacher_kl": kd(student, teacher, 1.0).mean()}

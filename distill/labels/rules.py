"""Label rules: what the teacher is trained on. One contract, so that in a comparison only the labels differ.

fixed.py      onehot, smoothing, tf-kd, bootstrap: a function of the given label, and of the answer of the moment
online.py     online-smoothing: a row for each class, from the answers of the epoch before
predicted.py  joint, pencil, elr: a row for each image, from the network's own answers
learned.py    class, instance, class+instance: rows that the bilevel step moves
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from distill.errors import BilevelError
from distill.store.labels import LearnedLabels


class LabelRule(Protocol):
    """From a batch to the loss that it is trained with, without waiting for the device."""

    def loss(self, logits: Tensor, indices: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each image of a training batch; called once a step, in training only.

        A rule that learns from the network's answers takes them in here.

        Args:
            logits: of the training forward, [B, C].
            indices: source indices, int64 [B].
            given: given labels, int64 [B].

        Returns:
            The loss [B], in nats, float32 at least, differentiable in the logits; and the labels [B, C] that the images
            were trained towards, detached. What a rule says of the batch as a whole is added to every image's loss.

        Raises:
            BilevelError: logits of another shape.
            DataError: an image has no row.
        """
        ...

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Called after each epoch, counted from 1, of `epochs`."""
        ...

    def kept(self) -> LearnedLabels | None:
        """The labels as they stand, to be written with the teacher; None where each follows from the given label."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            StoreError: the state belongs to other labels.
        """
        ...


def check_logits(logits: Tensor, given: Tensor, classes: int) -> None:
    """Shapes only. One column of logits would otherwise be spread over all classes without a word.

    Raises:
        BilevelError: they are not [B, C].
    """
    if logits.shape != (given.numel(), classes):
        raise BilevelError(
            f"labels: the logits are {list(logits.shape)}, expected {[given.numel(), classes]}, as the labels are",
            cure="give the model as many outputs as there are classes.",
        )


def onehot(given: Tensor, classes: int) -> Tensor:
    """int64 [B] -> float32 [B, C]. Not F.one_hot, which on the CPU looks at the labels."""
    return torch.zeros(given.numel(), classes, device=given.device).scatter_(1, given.unsqueeze(1), 1.0)


def entropy(log_p: Tensor) -> Tensor:
    """H(p) in nats of finite log-probabilities: [B, C] -> [B], differentiable."""
    return -(log_p.exp() * log_p).sum(-1)

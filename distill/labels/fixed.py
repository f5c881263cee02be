"""Rules that keep nothing: the label follows from the given one, and for `bootstrap` from the answer of the moment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.kernels import reference
from distill.labels.rules import check_logits
from distill.store.labels import LearnedLabels


class Fixed:
    """What all of them share: nothing to keep."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """See `LabelRule`."""

    def kept(self) -> LearnedLabels | None:
        """See `LabelRule`."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """See `LabelRule`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `LabelRule`."""

    def onehot(self, given: Tensor) -> Tensor:
        """int64 [B] -> [B, C]. Not F.one_hot, which on the CPU looks at the labels."""
        return torch.zeros(given.numel(), self.classes, device=given.device).scatter_(1, given.unsqueeze(1), 1.0)


class Smoothing(Fixed):
    """(1 - eps) * onehot + eps / C: the mass eps goes to *every* class, as in timm. eps = 0 is one-hot.

    Szegedy et al., "Rethinking the Inception Architecture", arXiv 1512.00567, section 7.
    """

    def __init__(self, classes: int, eps: float) -> None:
        super().__init__(classes)
        self.eps = eps

    def labels(self, given: Tensor) -> Tensor:
        """[B] -> [B, C]."""
        return self.onehot(given) * (1.0 - self.eps) + self.eps / self.classes

    def loss(self, logits: Tensor, indices: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See `LabelRule`."""
        check_logits(logits, given, self.classes)
        labels = self.labels(given)
        return reference.soft_cross_entropy(logits, labels), labels

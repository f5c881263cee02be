"""Online label smoothing: a label for each class, from the network's right answers in the epoch before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.labels.history import History
from distill.labels.rules import check_logits, onehot
from distill.labels.tables import LabelTable, restore, rows_exist
from distill.losses.soft import OnlineLabels, cross_entropy
from distill.store.labels import LearnedLabels


class OnlineSmoothing:
    """given CE(onehot) + (1 - given) CE(S_y), S_k the mean of p over class k's right answers in the epoch before.

    The label is the two mixed, given onehot + (1 - given) S_y. Zhang et al., "Delving Deep into Label Smoothing", arXiv
    2011.12562, section 3, where the share is .5; what the paper leaves open is told in `losses.soft.OnlineLabels`.

    Args:
        table: a class table, which names the rows; its phi [C, C] is of no use here.
        history: of the labels [C, C].
        given: share of the given label.

    Attributes:
        touched: whether a class ever had a right answer in an epoch that is over, bool [C].
    """

    def __init__(self, table: LabelTable, history: History, *, given: float) -> None:
        self.table = table
        self.history = history
        self.given = given
        self.online = OnlineLabels(table.classes).to(table.phi)
        self.touched = torch.zeros(table.classes, dtype=torch.bool, device=table.phi.device)

    def labels(self) -> Tensor:
        """As they stand, a row for each class, [C, C]."""
        return self._mixed(self.table.given, self.online.labels)

    def loss(self, logits: Tensor, indices: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See `LabelRule`. A label outside [0, C) is a DataError on the CPU."""
        check_logits(logits, given, self.table.classes)
        with rows_exist():
            labels = self._mixed(given, self.online.labels[given])
        of_given = cross_entropy(logits, given)
        return self.given * of_given + (1.0 - self.given) * self.online.loss(logits, given), labels

    def _mixed(self, given: Tensor, online: Tensor) -> Tensor:
        """[B], [B, C] -> [B, C]."""
        return onehot(given, self.table.classes) * self.given + online * (1.0 - self.given)

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """See `LabelRule`."""
        self.touched |= self.online.counts > 0
        self.online.end_epoch()
        self.history.end_epoch(epoch, epochs, self.labels())

    def kept(self) -> LearnedLabels:
        """See `LabelRule`."""
        return self.history.kept(self.table, self.labels(), self.touched)

    def state_dict(self) -> dict[str, Any]:
        """See `LabelRule`."""
        return {**self._tensors(), "history": self.history.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `LabelRule`."""
        self.history.load_state_dict(state.get("history", {}))
        restore(self._tensors(), {name: state.get(name) for name in self._tensors()})

    def _tensors(self) -> dict[str, Tensor]:
        return {**self.online.state_dict(), "touched": self.touched}

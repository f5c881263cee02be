"""What is kept of labels that move: their mean over the last epochs, and how they stood after some of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.labels.tables import LabelTable, restore
from distill.store.labels import LearnedLabels


class History:
    """The memory of a table of labels.

    Args:
        like: the table, [R, C].
        average_epochs: the mean is taken at the ends of so many last epochs.
        snapshot_epochs: epochs (counted from 1) after which the labels are kept.
    """

    def __init__(self, like: Tensor, *, average_epochs: int = 1, snapshot_epochs: tuple[int, ...] = ()) -> None:
        self.average_epochs = average_epochs
        self.snapshot_epochs = snapshot_epochs
        self.trajectory: dict[int, Tensor] = {}
        self._sum = torch.zeros_like(like)
        self._summed = 0

    def end_epoch(self, epoch: int, epochs: int, labels: Tensor) -> None:
        """Takes in the labels [R, C] as they stand after an epoch (counted from 1)."""
        if epoch > epochs - self.average_epochs:
            self._sum += labels
            self._summed += 1
        if epoch in self.snapshot_epochs:
            self.trajectory[epoch] = labels.half().cpu()

    def averaged(self, labels: Tensor) -> Tensor:
        """Their mean over the last epochs, [R, C]; today's `labels` before the first of those ended."""
        return self._sum / self._summed if self._summed else labels

    def kept(self, table: LabelTable, labels: Tensor, touched: Tensor) -> LearnedLabels:
        """What is written with the teacher.

        Args:
            table: says which rows there are.
            labels: as they stand, [R, C].
            touched: whether a row was ever updated, bool [R].
        """
        return LearnedLabels(
            kind=table.kind,
            labels=labels.cpu(),
            averaged=self.averaged(labels).cpu(),
            indices=table.images.cpu(),
            given=table.given.cpu(),
            touched=(touched if table.still is None else touched & ~table.still).cpu(),
            trajectory=self.trajectory,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"sum": self._sum, "summed": self._summed, "trajectory": dict(self.trajectory)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            StoreError: the state belongs to another table.
        """
        restore({"sum": self._sum}, {"sum": state.get("sum")})
        self.trajectory = dict(state["trajectory"])
        self._summed = int(state["summed"])

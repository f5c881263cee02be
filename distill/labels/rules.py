"""Label rules: what the teacher is trained on.

Fixed rules answer `labels`; the learned one is also told the meta-gradient. All run in the same loop, so that in a
comparison only the labels differ.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from distill.labels.optim import RowSGD
from distill.labels.tables import LabelTable


class LabelRule(Protocol):
    """From a batch to the labels that it is trained on."""

    def labels(self, indices: Tensor, given: Tensor) -> Tensor:
        """Source indices int64 [B], given labels int64 [B] -> soft labels [B, C]."""
        ...


class Smoothing:
    """(1 - eps) * onehot + eps / C: the mass eps goes to *every* class, as in timm. eps = 0 is one-hot.

    Szegedy et al., "Rethinking the Inception Architecture", arXiv 1512.00567, section 7.
    """

    def __init__(self, classes: int, eps: float) -> None:
        self.classes = classes
        self.eps = eps

    def labels(self, indices: Tensor, given: Tensor) -> Tensor:
        """[B], [B] -> [B, C]."""
        onehot = torch.nn.functional.one_hot(given, self.classes).to(torch.get_default_dtype())
        return onehot * (1.0 - self.eps) + self.eps / self.classes


class Learned:
    """Labels that are parameters. Vyas, Saxena, Voice, "Learning Soft Labels via Meta Learning", arXiv 2009.09496.

    Args:
        table: the rows.
        step: label step, on the derivative without the factor lr/B.
        momentum: momentum of the label step.
        average_epochs: `averaged` is the mean of the labels at the ends of so many last epochs.
        snapshot_epochs: epochs (counted from 1) after which the labels are kept, to see how they moved.
    """

    def __init__(
        self,
        table: LabelTable,
        *,
        step: float,
        momentum: float = 0.0,
        average_epochs: int = 1,
        snapshot_epochs: tuple[int, ...] = (),
    ) -> None:
        self.table = table
        self.optimizer = RowSGD(table, step=step, momentum=momentum)
        self.average_epochs = average_epochs
        self.snapshot_epochs = snapshot_epochs
        self.trajectory: dict[int, Tensor] = {}
        self._sum = torch.zeros_like(table.phi)
        self._summed = 0

    def labels(self, indices: Tensor, given: Tensor) -> Tensor:
        """[B], [B] -> [B, C]."""
        return self.table.labels(self.table.rows(indices, given))

    def learn(self, indices: Tensor, given: Tensor, labels: Tensor, derivative: Tensor) -> None:
        """Takes one label step from dL/dy without the factor lr/B, [B, C], at the labels [B, C] it was taken at."""
        self.optimizer.update(self.table.rows(indices, given), labels, derivative)

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Averages and keeps what the end of an epoch (counted from 1) asks for."""
        if epoch > epochs - self.average_epochs:
            self._sum += self.table.all_labels()
            self._summed += 1
        if epoch in self.snapshot_epochs:
            self.trajectory[epoch] = self.table.all_labels().half().cpu()

    def averaged(self) -> Tensor:
        """Mean of the labels over the last epochs, [R, C]; today's labels before the first of them ended."""
        return self._sum / self._summed if self._summed else self.table.all_labels()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "phi": self.table.phi,
            "buffer": self.optimizer.buffer,
            "touched": self.optimizer.touched,
            "trajectory": dict(self.trajectory),
            "sum": self._sum,
            "summed": self._summed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.table.phi.copy_(state["phi"])
        if self.optimizer.buffer is not None:
            self.optimizer.buffer.copy_(state["buffer"])
        self.optimizer.touched.copy_(state["touched"])
        self.trajectory = dict(state["trajectory"])
        self._sum.copy_(state["sum"])
        self._summed = int(state["summed"])

"""Label rules: what the teacher is trained on.

Fixed rules answer `labels`; the learned one is also told the meta-gradient. All run in the same loop, so that in a
comparison only the labels differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from distill.errors import BilevelError, DataError
from distill.kernels import dispatch, reference
from distill.labels.optim import OptimizerName, row_optimizer
from distill.labels.tables import LabelTable, restore


class LabelRule(Protocol):
    """From a batch to the labels that it is trained on, without waiting for the device."""

    def labels(self, indices: Tensor, given: Tensor) -> Tensor:
        """Source indices int64 [B], given labels int64 [B] -> soft labels [B, C]."""
        ...

    def loss(self, logits: Tensor, indices: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """The soft cross-entropy of each image with its label.

        Args:
            logits: [B, C].
            indices: source indices, int64 [B].
            given: given labels, int64 [B].

        Returns:
            The loss [B] in nats, float32 at least, differentiable in the logits; and the labels [B, C] that it was
            taken with, detached.

        Raises:
            BilevelError: logits of another shape.
        """
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
        # Not F.one_hot, which on the CPU looks at the labels.
        onehot = torch.zeros(given.numel(), self.classes, device=given.device).scatter_(1, given.unsqueeze(1), 1.0)
        return onehot * (1.0 - self.eps) + self.eps / self.classes

    def loss(self, logits: Tensor, indices: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See `LabelRule`."""
        _check_logits(logits, given, self.classes)
        labels = self.labels(indices, given)
        return reference.soft_cross_entropy(logits, labels), labels


class Learned:
    """Labels that are parameters. Vyas, Saxena, Voice, "Learning Soft Labels via Meta Learning", arXiv 2009.09496.

    Args:
        table: the rows.
        step: label step, on the derivative without the factor lr/B.
        optimizer: of the label step.
        momentum: of the label step, for "sgd".
        backend: which code works on the rows; settled here, as `self.backend`, for the table's device.
        average_epochs: `averaged` is the mean of the labels at the ends of so many last epochs.
        snapshot_epochs: epochs (counted from 1) after which the labels are kept, to see how they moved.

    Raises:
        BilevelError: the backend cannot work on the table, or the optimiser has no momentum.
    """

    def __init__(
        self,
        table: LabelTable,
        *,
        step: float,
        optimizer: OptimizerName = "sgd",
        momentum: float = 0.0,
        backend: dispatch.Backend = "auto",
        average_epochs: int = 1,
        snapshot_epochs: tuple[int, ...] = (),
    ) -> None:
        self.table = table
        self.backend = dispatch.choose(backend, table.phi)
        self.optimizer = row_optimizer(optimizer, table, step=step, momentum=momentum, backend=self.backend)
        self.average_epochs = average_epochs
        self.snapshot_epochs = snapshot_epochs
        self.trajectory: dict[int, Tensor] = {}
        self._sum = torch.zeros_like(table.phi)
        self._summed = 0

    def labels(self, indices: Tensor, given: Tensor) -> Tensor:
        """[B], [B] -> [B, C]."""
        with _rows_exist():
            return self.table.labels(self.table.rows(indices, given))

    def loss(self, logits: Tensor, indices: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See `LabelRule`. An image without a row is a DataError on the CPU; Triton makes its loss NaN."""
        _check_logits(logits, given, self.table.classes)
        if self.table.parametrisation == "projected":
            labels = self.labels(indices, given)
            return reference.soft_cross_entropy(logits, labels), labels
        with _rows_exist():
            loss, kept = dispatch.soft_cross_entropy_rows(
                logits, self.table.phi, self.table.rows(indices, given), keep_labels=True, backend=self.backend
            )
        assert kept is not None
        return loss, kept

    def learn(
        self,
        indices: Tensor,
        given: Tensor,
        labels: Tensor,
        gradient: Tensor,
        *,
        scale: Tensor | float,
        shares: Tensor | None = None,
    ) -> None:
        """Takes one label step.

        Args:
            indices: source indices, int64 [B].
            given: given labels, int64 [B].
            labels: the labels that the gradient was taken at, [B, C].
            gradient: dL_meta/dy, [B, C].
            scale: B/lr, which frees the gradient from the batch size and the schedule: a number, or [] on the device.
            shares: of each label in the one that the gradient is for, [B], where images were mixed; None: 1.
        """
        if isinstance(scale, Tensor):
            scale = scale.to(gradient.dtype)
        else:  # filled on the device; copying it there would wait
            scale = torch.full((), scale, dtype=gradient.dtype, device=gradient.device)
        if self.table.parametrisation == "softmax":
            gradient = dispatch.row_gradient(labels, gradient, scale, backend=self.backend)
        else:
            gradient = gradient * scale
        rows = self.table.rows(indices, given)
        if shares is not None:
            gradient = gradient * self._weights(rows, shares.to(gradient.dtype)).unsqueeze(1)
        self.optimizer.update(rows, gradient)
        self.table.project_(rows)

    def _weights(self, rows: Tensor, shares: Tensor) -> Tensor:
        """What mixed labels' gradients weigh, [B]. For a class row's mean over its images, a share of one is a part."""
        if self.table.kind != "class":
            return shares
        # The optimiser divides by the number of entries; here by their number and not by their shares is undone.
        entries, total = torch.zeros(2, self.table.classes, dtype=shares.dtype, device=shares.device)
        entries.index_add_(0, rows, torch.ones_like(shares))
        total.index_add_(0, rows, shares)
        # A row whose images all have a share of 0 gets no gradient; dividing by next to nothing would make it NaN.
        mean = torch.where(total > 0, entries / total, 0.0)
        return shares * mean[rows]

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
            **self._tensors(),
            "optimizer": self.optimizer.state_dict(),
            "trajectory": dict(self.trajectory),
            "summed": self._summed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            StoreError: the state belongs to another table or optimiser.
        """
        restore(self._tensors(), {name: state.get(name) for name in self._tensors()})
        self.optimizer.load_state_dict(state.get("optimizer", {}))
        self.trajectory = dict(state["trajectory"])
        self._summed = int(state["summed"])

    def _tensors(self) -> dict[str, Tensor]:
        return {"phi": self.table.phi, "sum": self._sum}


def _check_logits(logits: Tensor, given: Tensor, classes: int) -> None:
    """Shapes only. One column of logits would otherwise be spread over all classes without a word."""
    if logits.shape != (given.numel(), classes):
        raise BilevelError(
            f"labels: the logits are {list(logits.shape)}, expected {[given.numel(), classes]}, as the labels are",
            cure="give the model as many outputs as there are classes.",
        )


@contextmanager
def _rows_exist() -> Iterator[None]:
    """On the CPU torch looks at row numbers while it indexes."""
    try:
        yield
    except IndexError as error:
        raise DataError(
            f"labels: an image of the batch has no row in the label table: {error}",
            cure="make the table of all images and classes that are trained on.",
        ) from error

"""The label optimiser: gradient steps on the rows that a batch touched, and on no others."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.kernels import reference
from distill.labels.tables import LabelTable

SMALLEST = 1e-6  # probability that a projected label keeps on every class: from exactly 0 it would hardly return


class RowSGD:
    """phi <- phi - step * m, m <- momentum * m + g, for touched rows only.

    Rows that are labels themselves (parametrisation "projected") are clamped and divided by their sum after each step,
    since a gradient step leaves the simplex.

    Class rows take the mean over their images, never the sum: a sum lets one batch flip a row to another class.
    Instance rows take the sum over repeats of the same image.
    """

    def __init__(self, table: LabelTable, *, step: float, momentum: float) -> None:
        self.table = table
        self.step = step
        self.momentum = momentum
        self.buffer = torch.zeros_like(table.phi) if momentum > 0 else None  # [R, C]
        self.touched = torch.zeros(table.phi.shape[0], dtype=torch.bool, device=table.phi.device)  # [R]

    def update(self, rows: Tensor, labels: Tensor, derivative: Tensor) -> None:
        """One step.

        Args:
            rows: int64 [B], repeats allowed.
            labels: the labels that the derivative was taken at, [B, C].
            derivative: dL/dy without the factor lr/B, [B, C].
        """
        softmax = self.table.parametrisation == "softmax"
        gradient = reference.softmax_row_gradient(labels, derivative) if softmax else derivative
        unique, gradient = reference.reduce_rows(rows, gradient, mean=self.table.kind == "class")
        if self.buffer is not None:
            gradient = self.buffer[unique].mul_(self.momentum).add_(gradient)
            self.buffer[unique] = gradient
        moved = self.table.phi[unique] - self.step * gradient
        if not softmax:
            moved = moved.clamp_min(SMALLEST)
            moved /= moved.sum(-1, keepdim=True)
        self.table.phi[unique] = moved
        self.touched[unique] = True

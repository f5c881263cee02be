"""Label optimisers: gradient steps on the rows that a batch touched, and on no others.

Class rows take the mean over their images, never the sum: a sum lets one batch flip a row to another class. Instance
rows take the sum over repeats of the same image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from distill.errors import BilevelError
from distill.kernels import dispatch, reference
from distill.labels.tables import LabelTable, restore

OptimizerName = Literal["sgd", "normalised", "adam"]
# Kingma and Ba, "Adam", arXiv 1412.6980, algorithm 1; torch's defaults too.
BETAS, EPS = (0.9, 0.999), 1e-8


Schedule = Literal["constant", "linear", "cosine"]


def step_factor(schedule: Schedule, progress: float) -> float:
    """The part of the label step that is taken when `progress`, from 0 to 1, of the label steps are behind."""
    if schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule == "cosine" else 1.0


class RowOptimizer(Protocol):
    """Moves rows phi [R, C] of one table against a gradient.

    Attributes:
        step: the label step, [] on the table's device; may be filled anew at any time.
    """

    step: Tensor

    @property
    def touched(self) -> Tensor:
        """Which rows were ever moved, bool [R]."""
        ...

    def update(self, rows: Tensor, gradient: Tensor) -> None:
        """One step, without waiting for the device.

        Args:
            rows: int64 [B], repeats allowed.
            gradient: dL/dphi of each, [B, C].
        """
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs besides the table."""
        ...

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The inverse of `state_dict`.

        Raises:
            StoreError: the state belongs to another table or optimiser.
        """
        ...


class RowSGD:
    """m <- momentum * m + g, phi <- phi - step * m, for touched rows only."""

    def __init__(
        self, table: LabelTable, *, step: float, momentum: float = 0.0, backend: dispatch.Backend = "auto"
    ) -> None:
        self.table = table
        self.step = _number(step, table)
        self.momentum = momentum
        self.backend = backend
        self.buffer = torch.zeros_like(table.phi) if momentum > 0 else None  # m, [R, C]
        self.touched = _per_row(table, torch.bool)

    def update(self, rows: Tensor, gradient: Tensor) -> None:
        """See `RowOptimizer`."""
        dispatch.sgd_rows_(
            self.table.phi,
            self.buffer,
            self.touched,
            rows,
            gradient,
            step=self.step,
            momentum=self.momentum,
            mean=self.table.kind == "class",
            backend=self.backend,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """See `RowOptimizer`."""
        state = {"touched": self.touched}
        return state if self.buffer is None else {"buffer": self.buffer, **state}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """See `RowOptimizer`."""
        restore(self.state_dict(), state)


class RowNormalised:
    """phi <- phi - step * g / |g|, for touched rows only: every row moves as far, however sure its gradient is."""

    def __init__(self, table: LabelTable, *, step: float) -> None:
        self.table = table
        self.step = _number(step, table)
        self.touched = _per_row(table, torch.bool)

    def update(self, rows: Tensor, gradient: Tensor) -> None:
        """See `RowOptimizer`. A row whose gradient is 0 stays."""
        g = reference.combine_repeats(rows, gradient, mean=self.table.kind == "class")
        length = g.norm(dim=-1, keepdim=True)
        direction = torch.where(length > 0, g / length, 0.0)
        phi = self.table.phi
        phi[rows] = (phi[rows] - self.step * direction).to(phi.dtype)  # repeats write the same value
        self.touched.index_fill_(0, rows, True)

    def state_dict(self) -> dict[str, Tensor]:
        """See `RowOptimizer`."""
        return {"touched": self.touched}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """See `RowOptimizer`."""
        restore(self.state_dict(), state)


class RowAdam:
    """Adam on touched rows only. Each row has a clock of its own, which stands still while the row is not touched."""

    def __init__(self, table: LabelTable, *, step: float, backend: dispatch.Backend = "auto") -> None:
        self.table = table
        self.step = _number(step, table)
        self.backend = backend
        self.first, self.second = torch.zeros_like(table.phi), torch.zeros_like(table.phi)  # moments, [R, C]
        self.steps = _per_row(table, torch.int32)
        self.touched = _per_row(table, torch.bool)

    def update(self, rows: Tensor, gradient: Tensor) -> None:
        """See `RowOptimizer`."""
        dispatch.adam_rows_(
            self.table.phi,
            self.first,
            self.second,
            self.steps,
            self.touched,
            rows,
            gradient,
            step=self.step,
            betas=BETAS,
            eps=EPS,
            mean=self.table.kind == "class",
            backend=self.backend,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """See `RowOptimizer`."""
        return {"first": self.first, "second": self.second, "steps": self.steps, "touched": self.touched}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """See `RowOptimizer`."""
        restore(self.state_dict(), state)


def row_optimizer(
    name: OptimizerName, table: LabelTable, *, step: float, momentum: float, backend: dispatch.Backend
) -> RowOptimizer:
    """The optimiser that a recipe names.

    Raises:
        BilevelError: momentum for other rows than SGD's.
    """
    if name == "sgd":
        return RowSGD(table, step=step, momentum=momentum, backend=backend)
    if momentum > 0:
        raise BilevelError(
            f"learned labels: momentum is {momentum:g} with {name} rows, which have none, or moments of their own",
            cure='leave momentum at 0, or set optimizer = "sgd".',
        )
    if name == "normalised":
        return RowNormalised(table, step=step)
    return RowAdam(table, step=step, backend=backend)


def _number(value: float, table: LabelTable) -> Tensor:
    """A number on the table's device, where the kernels read it: [], filled there and not copied."""
    phi = table.phi
    return torch.full((), value, dtype=phi.dtype if phi.itemsize >= 4 else torch.float32, device=phi.device)


def _per_row(table: LabelTable, dtype: torch.dtype) -> Tensor:
    return torch.zeros(table.phi.shape[0], dtype=dtype, device=table.phi.device)

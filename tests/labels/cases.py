"""Label tables and learned rules of every sort, small."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from distill.kernels.dispatch import Backend
from distill.labels.learned import Learned
from distill.labels.pulls import Pulls
from distill.labels.tables import Kind, LabelTable, Parametrisation, class_table, instance_table

CPU = torch.device("cpu")
C, N = 4, 7
IMAGES = torch.arange(N) * 3 + 2  # source indices
GIVEN = torch.arange(N) % C
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"step": 0.5},
    "momentum": {"step": 0.5, "momentum": 0.9},
    "normalised": {"optimizer": "normalised", "step": 0.1},
    "adam": {"optimizer": "adam", "step": 0.1},
}
KINDS: tuple[Kind, ...] = ("class", "instance")
PARAMETRISATIONS: tuple[Parametrisation, ...] = ("softmax", "projected", "fixed-mass")
EVERY = list(itertools.product(KINDS, PARAMETRISATIONS, OPTIMIZERS))


def table(kind: Kind, parametrisation: Parametrisation = "softmax", device: torch.device = CPU) -> LabelTable:
    """[C, C], or [N, C] of the images above."""
    if kind == "class":
        return class_table(C, 0.7, device, parametrisation)
    return instance_table(IMAGES, GIVEN, C, 0.7, device, parametrisation)


def learned(
    kind: Kind,
    parametrisation: Parametrisation = "softmax",
    optimizer: str = "sgd",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    backend: Backend = "auto",
    pulls: Pulls | None = None,
) -> Learned:
    """A rule over such a table."""
    rows = table(kind, parametrisation, device)
    rows.phi = rows.phi.to(dtype)
    return Learned(rows, backend=backend, pulls=pulls, **OPTIMIZERS[optimizer])


def images(*rows: int) -> tuple[Tensor, Tensor]:
    """Source indices and given labels of some images, by their row in the instance table."""
    return IMAGES[list(rows)], GIVEN[list(rows)]


def noise(number: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, the same in every precision to its rounding."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(number)).to(dtype)


def learn(rule: Learned, rows: list[int], gradient: Tensor, scale: float = 2.0) -> None:
    """One label step of some images at today's labels."""
    at = images(*rows)
    rule.learn(*at, rule.labels(*at), gradient, scale=scale)

"""One judge for every form of an operation, and the tensors that they are judged on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 7  # of a table, unless a test says otherwise


def judge(what: str, found: Tensor, plain: Tensor, oracle: Tensor) -> None:
    """Fails unless `found` is about as close to the float64 `oracle` as plain torch in the same dtype is.

    The error may be 4 times that of plain torch, with a floor of 8 eps times the largest finite value. Infinities stand
    where the oracle has them, and nothing is NaN.
    """
    assert found.shape == oracle.shape, f"{what}: {list(found.shape)}, expected {list(oracle.shape)}"
    assert found.dtype == plain.dtype, f"{what}: {found.dtype}, expected {plain.dtype}"
    finite = torch.isfinite(oracle)
    assert torch.equal(found.double()[~finite], oracle[~finite]), f"{what}: infinities differ"
    found64, plain64, oracle = found.double()[finite], plain.double()[finite], oracle[finite]
    assert torch.isfinite(found64).all(), f"{what}: NaN or infinite where the oracle is finite"
    if oracle.numel() == 0:
        return
    error, plain_error = (found64 - oracle).abs().max().item(), (plain64 - oracle).abs().max().item()
    allowed = max(4 * plain_error, 8 * torch.finfo(found.dtype).eps * oracle.abs().max().item())
    assert error <= allowed, f"{what}: error {error:.2e}, allowed {allowed:.2e}, plain torch {plain_error:.2e}"


def wide(tensor: Tensor) -> Tensor:
    """A copy in float64; whole numbers and flags in their own type."""
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


@dataclass(frozen=True)
class Make:
    """Random tensors, the same on every device."""

    device: torch.device
    seed: int = 0

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """Normal numbers times a scale."""
        return (torch.randn(*shape, generator=self._generator(shape)) * scale).to(self.device, dtype)

    def integers(self, high: int, size: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """[size], each in [0, high)."""
        return torch.randint(high, (size,), generator=self._generator((high, size))).to(self.device, dtype)

    def table(self, rows: int, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Label logits [R, C]: sharp, un-normalised rows; every second one masks a third of the classes."""
        phi = self.normal(rows, classes, scale=4.0) + 3.0
        masked = torch.rand(rows, classes, generator=self._generator((rows, classes))).to(self.device) < 1 / 3
        masked[1::2] = False
        masked[:, -1] = False
        return phi.masked_fill(masked, float("-inf")).to(dtype)

    def _generator(self, shape: tuple[int, ...]) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + hash(shape) % 1_000_003)


def sgd_state(make: Make, classes: int, dtype: torch.dtype, rows: int = ROWS) -> list[Tensor]:
    """phi, buffer [R, C] and touched [R]."""
    touched = torch.zeros(rows, dtype=torch.bool, device=make.device)
    return [make.table(rows, classes, dtype), make.normal(rows, classes, dtype=dtype), touched]


def adam_state(make: Make, classes: int, dtype: torch.dtype, rows: int = ROWS) -> list[Tensor]:
    """phi, first and second moment [R, C], steps and touched [R], as they are after some updates."""
    phi, first, touched = sgd_state(make, classes, dtype, rows)
    steps = make.integers(4, rows, torch.int32)
    return [phi, first, first.square() + 0.1, steps, touched]

"""The judge of host synchronisation sees what waits, and lets pass what does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.nosync import HostSync, fake_cuda, no_host_sync

# x float [4, 3], rows int64 [4]
WAITS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "item": lambda x, rows: x.sum().item(),
    "bool": lambda x, rows: bool((x > 0).all()),
    "float": lambda x, rows: float(x.sum()),
    "indexing by a number": lambda x, rows: x[rows[0]],
    "equal": lambda x, rows: torch.equal(x, x),
    "allclose": lambda x, rows: torch.allclose(x, x),
    "nonzero": lambda x, rows: x.nonzero(),
    "where": lambda x, rows: torch.where(x > 0),
    "unique": lambda x, rows: torch.unique(rows),
    "unique with inverse": lambda x, rows: torch.unique(rows, return_inverse=True),
    "unique_consecutive": lambda x, rows: torch.unique_consecutive(rows),
    "masked_select": lambda x, rows: torch.masked_select(x, x > 0),
    "mask": lambda x, rows: x[x > 0],
    "write by mask": lambda x, rows: x.__setitem__(rows > 0, torch.ones(4, 3, device=x.device)),
    "bincount": lambda x, rows: torch.bincount(rows),
    "repeat_interleave": lambda x, rows: torch.repeat_interleave(x, rows, dim=0),
}
FREE: dict[str, Callable[[Tensor, Tensor], object]] = {
    "gather": lambda x, rows: x[rows],
    "scatter": lambda x, rows: x.__setitem__(rows, x + 1),
    "sort": lambda x, rows: torch.sort(rows, stable=True),
    "full": lambda x, rows: torch.full((), 3.0, device=x.device),
    "masked_fill": lambda x, rows: x.masked_fill(x > 0, 0.0),
    "isfinite": lambda x, rows: torch.isfinite(x).all(),
    "cast": lambda x, rows: x.double().to(torch.float32),
    "softmax": lambda x, rows: torch.log_softmax(x, -1).sum(),
}
MOVES: dict[str, Callable[[Tensor], object]] = {
    "cpu": lambda x: x.cpu(),
    "to": lambda x: torch.zeros(3).to(x.device),
    "tensor": lambda x: torch.tensor(3.0, device=x.device),
    "copy_": lambda x: x.copy_(torch.ones(4, 3)),
    "a number to rows": lambda x: x.__setitem__(torch.zeros(2, dtype=torch.int64, device=x.device), 1.0),
    "index": lambda x: x[torch.zeros(3, dtype=torch.int64)],
    "tolist": lambda x: x.tolist(),
}


def inputs(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.ones(4, 3, device=device), torch.zeros(4, dtype=torch.int64, device=device)


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_raises(name: str) -> None:
    with pytest.raises(HostSync), no_host_sync():
        WAITS[name](*inputs(torch.device("cpu")))
    with pytest.raises(HostSync), fake_cuda() as device:
        WAITS[name](*inputs(device))


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_wait_passes(name: str) -> None:
    with no_host_sync():
        FREE[name](*inputs(torch.device("cpu")))
    with fake_cuda() as device:
        FREE[name](*inputs(device))


@pytest.mark.parametrize("name", MOVES)
def test_blocking_moves_between_devices_raise(name: str) -> None:
    with pytest.raises(HostSync), fake_cuda() as device:
        MOVES[name](inputs(device)[0])


def test_moves_that_do_not_block_pass() -> None:
    with fake_cuda() as device:
        x, _ = inputs(device)
        x.copy_(torch.ones(4, 3), non_blocking=True)
        torch.ones(3).to(device, non_blocking=True)


def test_numbers_on_the_cpu_are_free_beside_a_gpu() -> None:
    with no_host_sync("cuda"):
        assert torch.ones(()).item() == 1

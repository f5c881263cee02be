"""The definitions themselves: against autograd and torch's optimisers, and without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.kernels import dispatch, reference
from tests.kernels.judge import Make
from tests.nosync import no_host_sync

make = Make(torch.device("cpu"))
DOUBLE = torch.float64
row_lists = st.lists(st.integers(0, 5), min_size=1, max_size=20)


def test_the_gradient_of_the_loss() -> None:
    logits, phi, rows = make.normal(5, 7, dtype=DOUBLE).requires_grad_(), make.table(4, 7, DOUBLE), make.integers(4, 5)
    assert torch.autograd.gradcheck(lambda z: reference.soft_cross_entropy_rows(z, phi, rows)[0], logits)
    loss, labels = reference.soft_cross_entropy_rows(logits, phi, rows)
    (by_autograd,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(reference.soft_cross_entropy_gradient(logits.detach(), labels), by_autograd)
    torch.testing.assert_close(labels, torch.softmax(phi[rows], -1))
    torch.testing.assert_close(loss, reference.soft_cross_entropy(logits, labels))


def test_the_row_gradient_is_the_chain_rule() -> None:
    phi, derivative = make.normal(5, 7, dtype=DOUBLE).requires_grad_(), make.normal(5, 7, dtype=DOUBLE, scale=3)
    labels = torch.softmax(phi, -1)
    (by_autograd,) = torch.autograd.grad((labels * derivative).sum(), phi)
    found = reference.row_gradient(labels.detach(), derivative, torch.tensor(2.0))
    torch.testing.assert_close(found, 2 * by_autograd)
    assert torch.autograd.gradcheck(lambda p: (torch.softmax(p, -1) * derivative).sum(), phi)


def test_nothing_reaches_the_table() -> None:
    phi = make.table(4, 7)
    loss, labels = reference.soft_cross_entropy_rows(make.normal(3, 7), phi.requires_grad_(), make.integers(4, 3))
    assert not loss.requires_grad
    assert not labels.requires_grad


@given(rows=row_lists, mean=st.booleans())
@settings(deadline=None)
def test_repeats_are_combined_entry_by_entry(rows: list[int], mean: bool) -> None:
    at, gradient = torch.tensor(rows), make.normal(len(rows), 3, dtype=DOUBLE)
    same = [gradient[at == row] for row in rows]
    expected = torch.stack([repeats.mean(0) if mean else repeats.sum(0) for repeats in same])
    torch.testing.assert_close(reference.combine_repeats(at, gradient, mean=mean), expected)


@given(rows=row_lists, mean=st.booleans())
@settings(deadline=None)
def test_untouched_rows_stay_bit_identical(rows: list[int], mean: bool) -> None:
    at, gradient = torch.tensor(rows), make.normal(len(rows), 3)
    untouched = torch.ones(6, dtype=torch.bool).index_fill_(0, at, False)
    for state in (sgd_state(6), adam_state(6)):
        before = [t.clone() for t in state]
        update(state, at, gradient, mean=mean)
        assert all(torch.equal(t[untouched], b[untouched]) for t, b in zip(state, before, strict=True))
        assert torch.equal(state[-1], ~untouched)


def sgd_state(rows: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [make.normal(rows, 3, dtype=dtype), torch.zeros(rows, 3, dtype=dtype), torch.zeros(rows, dtype=torch.bool)]


def adam_state(rows: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    phi, zeros, touched = sgd_state(rows, dtype)
    return [phi, zeros, zeros.clone(), torch.zeros(rows, dtype=torch.int32), touched]


def update(state: list[Tensor], rows: Tensor, gradient: Tensor, *, mean: bool) -> None:
    """One step of .1 in the table's dtype: SGD on three tensors, Adam on five."""
    step = torch.tensor(0.1, dtype=state[0].dtype)
    if len(state) == 3:
        dispatch.sgd_rows_(*state, rows, gradient, step=step, momentum=0.9, mean=mean)
    else:
        dispatch.adam_rows_(*state, rows, gradient, step=step, betas=(0.9, 0.999), eps=1e-8, mean=mean)


@pytest.mark.parametrize("start", [sgd_state, adam_state])
def test_a_row_moves_as_a_parameter_of_its_own_would_under_torch(
    start: Callable[[int, torch.dtype], list[Tensor]],
) -> None:
    state = start(4, DOUBLE)
    parameters = [row.clone().requires_grad_() for row in state[0]]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.SGD([p], lr=0.1, momentum=0.9) if len(state) == 3 else torch.optim.Adam([p], lr=0.1)
        for p in parameters
    ]
    batches = [
        [0, 1, 2],
        [1, 2, 1],
        [3],
        [3, 0, 0, 0],
        [1, 2],
    ]  # so the rows' clocks run apart; no batch leaves all out
    for number, batch in enumerate(batches):
        rows, gradient = torch.tensor(batch), Make(make.device, number).normal(len(batch), 3, dtype=DOUBLE)
        update(state, rows, gradient, mean=False)
        for row in set(batch):
            parameters[row].grad = gradient[rows == row].sum(0)
            optimizers[row].step()
    torch.testing.assert_close(state[0], torch.stack([p.detach() for p in parameters]))


def test_no_operation_of_the_step_waits_for_the_device() -> None:
    rows, logits, phi = make.integers(6, 8), make.normal(8, 3).requires_grad_(), make.normal(6, 3)
    one, sgd, adam = torch.ones(()), sgd_state(6), adam_state(6)
    with no_host_sync():
        loss, labels = dispatch.soft_cross_entropy_rows(logits, phi, rows, keep_labels=True)
        assert labels is not None
        loss.mean().backward()  # type: ignore[no-untyped-call]
        gradient = dispatch.row_gradient(labels, torch.zeros(8, 3), one)
        for mean in (False, True):
            update(sgd, rows, gradient, mean=mean)
            update(adam, rows, gradient, mean=mean)

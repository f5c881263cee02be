"""The definitions themselves: against autograd, torch's optimisers, and the present label optimiser."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from distill.kernels import dispatch, reference
from distill.labels.optim import RowSGD
from distill.labels.tables import class_table, instance_table
from tests.kernels.judge import Make

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
def test_repeats_are_combined_as_by_index_add(rows: list[int], mean: bool) -> None:
    at, gradient = torch.tensor(rows), make.normal(len(rows), 3, dtype=DOUBLE)
    unique, reduced = reference.reduce_rows(at, gradient, mean=mean)
    dense = torch.zeros(6, 3, dtype=DOUBLE).index_copy_(0, unique, reduced)
    torch.testing.assert_close(reference.combine_repeats(at, gradient, mean=mean), dense[at])


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


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", ["class", "instance"])
def test_the_present_label_optimiser_takes_the_same_step(kind: str, momentum: float) -> None:
    cpu = torch.device("cpu")
    table = (
        class_table(5, 0.9, cpu)
        if kind == "class"
        else instance_table(torch.arange(9), make.integers(5, 9), 5, 0.9, cpu)
    )
    phi, touched = table.phi.clone(), torch.zeros(table.phi.shape[0], dtype=torch.bool)
    buffer = torch.zeros_like(phi) if momentum > 0 else None
    optimiser = RowSGD(table, step=0.3, momentum=momentum)
    for number in range(3):
        rows, derivative = Make(cpu, number).integers(5, 8), Make(cpu, number).normal(8, 5)
        labels = table.labels(rows)
        optimiser.update(rows, labels, derivative)
        gradient = dispatch.row_gradient(labels, derivative, torch.tensor(1.0))
        step, mean = torch.tensor(0.3), kind == "class"
        dispatch.sgd_rows_(phi, buffer, touched, rows, gradient, step=step, momentum=momentum, mean=mean)
    torch.testing.assert_close(phi, table.phi, rtol=1e-6, atol=1e-6)
    assert torch.equal(touched, optimiser.touched)


def test_no_operation_of_the_step_waits_for_the_device() -> None:
    """A fake tensor has no values: whatever the host would have to read, or a size that depends on it, raises."""
    with FakeTensorMode():
        rows, logits, phi = torch.zeros(8, dtype=torch.int64), torch.zeros(8, 3, requires_grad=True), torch.zeros(6, 3)
        with pytest.raises(DynamicOutputShapeException):
            reference.reduce_rows(rows, torch.zeros(8, 3), mean=False)  # the judge sees torch.unique
        loss, labels = dispatch.soft_cross_entropy_rows(logits, phi, rows, keep_labels=True)
        assert labels is not None
        loss.mean().backward()  # type: ignore[no-untyped-call]
        one, flags = torch.ones(()), torch.zeros(6, dtype=torch.bool)
        gradient = dispatch.row_gradient(labels, torch.zeros(8, 3), one)
        for mean in (False, True):
            dispatch.sgd_rows_(phi, phi.clone(), flags, rows, gradient, step=one, momentum=0.9, mean=mean)
            steps = torch.zeros(6, dtype=torch.int32)
            dispatch.adam_rows_(
                phi, phi.clone(), phi.clone(), steps, flags, rows, gradient,
                step=one, betas=(0.9, 0.999), eps=1e-8, mean=mean,
            )  # fmt: skip

"""Each loss against its oracle, and its gradient against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.losses.catalogue import CASES, Case, example

SHAPES = [(7, 5), (1, 5), (3, 1), (1, 1), (4, 2), (32, 10), (16, 100)]
SPREADS = (0.01, 3.0, 300.0)
ROUNDINGS = 16  # eps, times the scale of a case; measured at most 12

every_case = pytest.mark.parametrize("name", CASES)


def scale(case: Case, expected: np.ndarray, *logits: Tensor) -> np.ndarray:
    """What an eps of a logit comes to in a loss: [B]."""
    return np.abs(expected) + case.factor * (1 + max(float(z.abs().max()) for z in logits))


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_loss_is_its_oracle(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    for batch, classes in SHAPES:
        for spread in SPREADS:
            student, teacher, targets = example(batch, classes, spread=spread)
            expected = case.oracle(student.numpy(), teacher.numpy(), targets.numpy())
            found = case.loss(student.to(dtype), teacher.to(dtype), targets)
            assert found.dtype == dtype
            assert found.shape == expected.shape == (batch,)
            error = np.abs(found.double().numpy() - expected)
            bound = ROUNDINGS * torch.finfo(dtype).eps * scale(case, expected, student, teacher)
            assert (error <= bound).all(), (batch, classes, spread, (error / bound).max())


@every_case
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:FutureWarning")  # torch's own, on first use
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    """Backward mode, and forward mode, which label gradients may use."""
    for batch, classes in ((4, 5), (3, 2)):
        student, teacher, targets = example(batch, classes)
        leaf = (student / 2).requires_grad_()
        loss = CASES[name].loss
        assert torch.autograd.gradcheck(lambda z: loss(z, teacher, targets), leaf, check_forward_ad=True)  # noqa: B023


def gradient(case: Case, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    leaf = student.clone().requires_grad_()
    return torch.autograd.grad(case.loss(leaf, teacher, targets).mean(), leaf)[0]


@every_case
def test_the_gradient_in_float32(name: str) -> None:
    case = CASES[name]
    for batch, classes in SHAPES:
        student, teacher, targets = example(batch, classes)
        expected = gradient(case, student, teacher, targets)
        found = gradient(case, student.float(), teacher.float(), targets)
        error = float((found.double() - expected).abs().max())
        assert error <= 2e-6 * case.factor, (batch, classes, error)


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_widened_first(name: str, dtype: torch.dtype) -> None:
    student, teacher, targets = example(16, 10)
    student, teacher = student.to(dtype), teacher.to(dtype)
    case = CASES[name]
    found, wide = case.loss(student, teacher, targets), case.loss(student.float(), teacher.float(), targets)
    assert torch.equal(found, wide)
    found, wide = gradient(case, student, teacher, targets), gradient(case, student.float(), teacher.float(), targets)
    assert torch.equal(found, wide.to(dtype))


@every_case
def test_autocast_changes_nothing(name: str) -> None:
    student, teacher, targets = (z.float() if z.is_floating_point() else z for z in example(16, 10))
    expected = CASES[name].loss(student, teacher, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = CASES[name].loss(student, teacher, targets)
    assert torch.equal(found, expected)


@every_case
def test_a_student_in_half_and_a_teacher_in_single_precision(name: str) -> None:
    student, teacher, targets = example(4, 5)
    found = CASES[name].loss(student.bfloat16(), teacher.float(), targets)
    assert torch.equal(found, CASES[name].loss(student.bfloat16().float(), teacher.float(), targets))

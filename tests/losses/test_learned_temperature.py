"""CTKD: a temperature that goes up the student's loss."""

from __future__ import annotations

import math

import pytest
import torch

from distill.losses.learned_temperature import LearnedTemperature, reversal_strength
from distill.losses.logit import kd
from tests.losses.catalogue import example


@pytest.mark.parametrize(
    ("raw", "expected"), [(1.0, 1 + 20 / (1 + math.exp(-1))), (0.0, 11.0), (-1e4, 1.0), (1e4, 21.0)]
)
def test_the_range(raw: float, expected: float) -> None:
    found = LearnedTemperature(raw=raw)(1.0)
    assert found.shape == ()
    assert found.item() == pytest.approx(expected)


def test_another_range() -> None:
    assert LearnedTemperature(lowest=2.0, reach=6.0, raw=0.0)(0.5).item() == pytest.approx(5.0)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_value_is_the_same_and_the_gradient_is_reversed(strength: float) -> None:
    student, teacher, _ = example()
    plain = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    loss = kd(student, teacher, 1 + 20 * torch.sigmoid(plain))
    (expected,) = torch.autograd.grad(loss.mean(), plain)
    learned = LearnedTemperature(raw=0.3).double()
    with torch.no_grad():
        learned.raw.copy_(plain)
    found = kd(student, teacher, learned(strength))
    torch.testing.assert_close(found, loss)
    found.mean().backward()
    torch.testing.assert_close(learned.raw.grad, -strength * expected)


def test_the_gradient_in_the_temperature_is_that_of_finite_differences() -> None:
    """Through both distributions and T^2."""
    student, teacher, _ = example()
    temperature = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, t: kd(z, teacher, t), (student, temperature))


def test_the_student_s_gradient_does_not_know_of_the_reversal() -> None:
    student, teacher, _ = example()
    student.requires_grad_()
    learned = LearnedTemperature().double()
    temperature = learned(1.0)
    (found,) = torch.autograd.grad(kd(student, teacher, temperature).sum(), student)
    (expected,) = torch.autograd.grad(kd(student, teacher, temperature.item()).sum(), student)
    torch.testing.assert_close(found, expected)


def test_a_step_of_descent_makes_the_student_s_task_harder() -> None:
    student, teacher, _ = example()
    learned = LearnedTemperature()
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.01)
    before = kd(student, teacher, learned(1.0)).mean()
    before.backward()
    optimizer.step()
    assert kd(student, teacher, learned(1.0)).mean() > before


def test_the_curriculum() -> None:
    """Half a cosine over ten epochs, then constant."""
    assert reversal_strength(0) == pytest.approx(0, abs=1e-15)
    assert reversal_strength(5) == pytest.approx(0.5)
    assert reversal_strength(2.5) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
    assert reversal_strength(10) == reversal_strength(240) == 1
    assert reversal_strength(3, epochs=6, lowest=0.2, highest=0.6) == pytest.approx(0.4)
    steps = [reversal_strength(epoch / 4) for epoch in range(60)]
    assert steps == sorted(steps)

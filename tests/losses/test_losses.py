"""Losses against their formulae in NumPy, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.losses.logit import kd
from distill.losses.soft import cross_entropy, soft_cross_entropy


def log_softmax(z: np.ndarray) -> np.ndarray:
    shifted = z - z.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.fixture
def logits() -> tuple[np.ndarray, np.ndarray]:
    source = np.random.default_rng(0)
    return source.normal(size=(7, 5)) * 3, source.normal(size=(7, 5)) * 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kd_is_hinton_s_formula(logits, temperature: float) -> None:
    student, teacher = logits
    log_p, log_q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    expected = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1)
    found = kd(torch.tensor(student), torch.tensor(teacher), temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    student_leaf = torch.tensor(student, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: kd(z, torch.tensor(teacher), temperature), student_leaf)


def test_kd_has_no_gradient_where_student_equals_teacher(logits) -> None:
    student = torch.tensor(logits[0], requires_grad=True)
    loss = kd(student, torch.tensor(logits[0]), 4.0)
    loss.sum().backward()
    assert loss.abs().max() < 1e-14
    assert student.grad.abs().max() < 1e-14


def test_no_gradient_reaches_the_teacher(logits) -> None:
    teacher = torch.tensor(logits[1], requires_grad=True)
    loss = kd(torch.tensor(logits[0], requires_grad=True), teacher, 2.0).sum()
    loss.backward()
    assert teacher.grad is None


def test_kd_becomes_logit_matching_when_hot(logits) -> None:
    """T to infinity: the gradient tends to that of 1/(2C) of the squared distance of centred logits (section 2.1)."""
    student, teacher = (torch.tensor(z) for z in logits)
    student, teacher = student - student.mean(-1, keepdim=True), teacher - teacher.mean(-1, keepdim=True)
    found = kd(student, teacher, 1e4)
    torch.testing.assert_close(found, (student - teacher).square().sum(-1) / (2 * student.shape[-1]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_are_finite_for_wide_gaps(dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, 0.0, -1e4]], dtype=dtype).requires_grad_()
    teacher = torch.tensor([[-1e4, 0.0, 1e4]], dtype=dtype)
    labels = torch.tensor([[0.1, 0.0, 0.9]])
    target = torch.tensor([2])
    losses = (
        kd(student.float(), teacher.float(), 1.0),
        cross_entropy(student, target),
        soft_cross_entropy(student, labels),
    )
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss.sum(), student, retain_graph=True)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()


def test_soft_cross_entropy_of_onehot_labels_is_cross_entropy(logits) -> None:
    z, targets = torch.tensor(logits[0]), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    onehot = torch.eye(5, dtype=torch.float64)[targets]
    torch.testing.assert_close(soft_cross_entropy(z, onehot), cross_entropy(z, targets))
    np.testing.assert_allclose(cross_entropy(z, targets).numpy(), -log_softmax(logits[0])[range(7), targets])

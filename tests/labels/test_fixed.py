"""Rules without rows: Tf-KD and bootstrap. Their oracles are in `test_baselines.py`."""

from __future__ import annotations

import pytest
import torch

from distill.labels.fixed import PAPER_SHARES, Bootstrap, Smoothing, VirtualTeacher
from distill.labels.phases import Phases
from distill.losses.soft import cross_entropy, soft_cross_entropy
from tests.labels.cases import GIVEN, C, N, images, noise


def bootstrap(target: str, given: float | None = None, warmup: int = 0) -> Bootstrap:
    assert target in ("hard", "soft")
    return Bootstrap(C, Phases(5, warmup_epochs=warmup), target=target, given=given)


def test_at_temperature_1_tf_kd_is_the_soft_cross_entropy_with_its_labels() -> None:
    """Up to the virtual teacher's entropy, which has no gradient."""
    rule = VirtualTeacher(C, mass=0.9, temperature=1.0, weight=0.6)
    logits, at = noise(0, N, C).double().requires_grad_(), images(*range(N))
    losses, labels = rule.loss(logits, *at)
    gap = soft_cross_entropy(logits, labels) - losses
    u = torch.tensor([0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3]).double()
    torch.testing.assert_close(gap, 0.6 * torch.special.entr(u).sum().expand(N), rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(gradient, logits.detach().softmax(-1) - labels, rtol=1e-6, atol=1e-6)


def test_tf_kd_s_labels_have_the_teacher_s_mass() -> None:
    labels = VirtualTeacher(C, mass=0.97, temperature=20.0, weight=0.5).labels(torch.tensor([2]))
    torch.testing.assert_close(labels, torch.tensor([[0.005, 0.005, 0.985, 0.005]]))


def test_bootstrap_has_the_paper_s_shares_unless_told() -> None:
    assert PAPER_SHARES == {"hard": 0.8, "soft": 0.95}
    assert [bootstrap("hard").given, bootstrap("soft").given] == [0.8, 0.95]
    assert bootstrap("soft", 0.0).given == 0.0


@pytest.mark.parametrize("target", ["hard", "soft"])
def test_bootstrap_is_plain_cross_entropy_in_its_warm_up(target: str) -> None:
    rule, logits, at = bootstrap(target, warmup=2), noise(0, N, C), images(*range(N))
    for epoch in range(1, 5):
        losses, labels = rule.loss(logits, *at)
        plain = torch.equal(losses, cross_entropy(logits, GIVEN))
        assert plain == torch.equal(labels, torch.eye(C)[GIVEN]) == (epoch <= 2)
        rule.end_epoch(epoch, 5)
    assert rule.kept() is None


def test_soft_bootstrap_is_minimum_entropy() -> None:
    """A step against its gradient makes answers surer; with a detached target nothing would move."""
    logits = noise(0, N, C).double().requires_grad_()
    losses, labels = bootstrap("soft", 0.0).loss(logits, *images(*range(N)))
    torch.testing.assert_close(labels, logits.detach().softmax(-1))
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    after = torch.special.entr((logits.detach() - 0.1 * gradient).softmax(-1)).sum(-1)
    assert (after < losses.detach()).all()
    (detached,) = torch.autograd.grad(soft_cross_entropy(logits, labels).sum(), logits)
    torch.testing.assert_close(detached, torch.zeros_like(detached))


@pytest.mark.parametrize("target", ["hard", "soft"])
def test_derivatives_of_bootstrap_and_tf_kd(target: str) -> None:
    rules = (bootstrap(target, 0.6), VirtualTeacher(C, mass=0.9, temperature=4.0, weight=0.7), Smoothing(C, 0.1))
    for rule in rules:
        logits = noise(1, N, C).double().requires_grad_()
        assert torch.autograd.gradcheck(lambda z, rule=rule: rule.loss(z, *images(*range(N)))[0], logits)

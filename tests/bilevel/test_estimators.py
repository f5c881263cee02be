"""What the estimators build on: the look-ahead's rules, and a loss that is linear in the labels.

The laws of the estimators themselves are in test_contract.py.
"""

from __future__ import annotations

import pytest
import torch

from distill.losses.soft import soft_cross_entropy
from tests.bilevel import cases


@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS)
@pytest.mark.parametrize("warm", [0, 3])
def test_the_rule_restates_the_real_optimiser(optimizer: str, warm: int) -> None:
    model, opt = cases.build("conv-batchnorm", optimizer)
    cases.plain_steps(model, opt, warm)
    images, _, labels = cases.batch(1, cases.B)
    raw, _ = cases.build("conv-batchnorm", optimizer)
    raw.load_state_dict(model.state_dict())
    cases.inner_step(raw, torch.optim.SGD(raw.parameters(), lr=0.0), images, labels, seed=3)
    inner = cases.inner_step(model, opt, images, labels, seed=3, clip=cases.clip_norm(optimizer))
    gradient = {name: p.grad for name, p in raw.named_parameters()}
    g = {name: t.clone().requires_grad_() for name, t in gradient.items()}
    after = inner.look_ahead.step(inner.theta, g)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(after[name].detach(), parameter.detach(), rtol=1e-13, atol=1e-14)
    r = {name: torch.randn_like(t) for name, t in gradient.items()}
    slow = torch.autograd.grad(sum((after[n] * r[n]).sum() for n in r), [g[n] for n in r])
    for expected, found in zip(slow, inner.look_ahead.pull_back(r).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-14)


def test_soft_cross_entropy_is_linear_in_the_labels() -> None:
    """What makes the fused form exact."""
    logits = torch.randn(3, 4, dtype=torch.float64)
    a, b = torch.rand(3, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    both = soft_cross_entropy(logits, 2 * a + b)
    torch.testing.assert_close(both, 2 * soft_cross_entropy(logits, a) + soft_cross_entropy(logits, b))

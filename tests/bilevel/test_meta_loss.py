"""What judges labels: generalised cross-entropy against NumPy, its limits, and its part in a whole step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.bilevel.estimators import ESTIMATORS
from distill.bilevel.step import Training
from distill.bilevel.targets import meta_loss
from distill.data.batches import Batch, Mix
from tests.bilevel import cases

DOUBLE = torch.float64


def batch_of(given: list[int]) -> Batch:
    indices = torch.arange(len(given))
    return replace(cases.batch_of(0), images=torch.zeros(len(given), 1), indices=indices, given=torch.tensor(given))


def logits_of(rows: int, dtype: torch.dtype = DOUBLE) -> torch.Tensor:
    return 3 * torch.randn(rows, cases.C, generator=torch.Generator().manual_seed(1), dtype=DOUBLE).to(dtype)


def by_numpy(logits: np.ndarray, given: list[int], q: float) -> np.ndarray:
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = p[np.arange(len(given)), given]
    return -np.log(chosen) if q == 0 else (1 - chosen**q) / q


@pytest.mark.parametrize("q", [0.0, 0.3, 0.7, 1.0])
def test_by_numpy(q: float) -> None:
    given, logits = [0, 3, 1, 2], logits_of(4)
    expected = torch.from_numpy(by_numpy(logits.numpy(), given, q))
    torch.testing.assert_close(meta_loss(logits, batch_of(given), q), expected, rtol=1e-12, atol=1e-13)
    assert torch.autograd.gradcheck(lambda z: meta_loss(z, batch_of(given), q), logits.requires_grad_())


def test_its_limit_is_cross_entropy() -> None:
    given, logits = [0, 3, 1, 2], logits_of(4)
    near = meta_loss(logits, batch_of(given), 1e-9)
    torch.testing.assert_close(near, meta_loss(logits, batch_of(given), 0.0), rtol=1e-6, atol=1e-8)


def test_mixed_images_have_both_partners_in_their_shares() -> None:
    given, partners, share = [0, 3, 1], [2, 3, 0], torch.tensor([0.2, 0.5, 1.0], dtype=DOUBLE)
    batch, logits = batch_of(given), logits_of(3)
    mixed = replace(batch, mix=Mix(torch.tensor([1, 1, 0]), torch.tensor(partners), share, torch.tensor([1, 1, 0])))
    own, other = (torch.from_numpy(by_numpy(logits.numpy(), each, 0.7)) for each in (given, partners))
    torch.testing.assert_close(meta_loss(logits, mixed, 0.7), share * own + (1 - share) * other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("q", [0.0, 0.7, 1.0])
def test_finite_for_any_finite_logits(dtype: torch.dtype, q: float) -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4, 0.0], [0.0, 0.0, 0.0, 0.0]]).to(dtype).requires_grad_()
    for given in ([0, 1], [2, 1]):
        loss = meta_loss(logits, batch_of(given), q)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        assert q == 0 or loss.max() <= 1 / q + 1e-6


@pytest.mark.parametrize("meta", ["held-out", "next-batch"])
def test_whole_steps_are_judged_by_it(meta: str) -> None:
    """In whole steps labels move otherwise than by cross-entropy, and as `unrolled` says."""
    moved = []
    for name, q in (("unrolled", 0.0), ("unrolled", 0.7), ("forward-mode", 0.7)):
        model, optimizer = cases.build("conv-batchnorm", "nesterov")
        rule = cases.learned("instance", 1.0)
        training = Training(model, optimizer, rule, seed=5, meta_loss_q=q)
        before = rule.table.phi.clone()
        step = cases.whole_step(training, ESTIMATORS[name], meta)
        step(cases.batch_of(0), 0, learn=True)
        step(cases.batch_of(1), 1, learn=False)
        moved.append(rule.table.phi - before)
    assert cases.relative(moved[2], moved[1]) < 1e-10
    assert cases.relative(moved[0], moved[1]) > 1e-2

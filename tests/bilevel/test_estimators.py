"""What the estimators build on: the look-ahead's rules, and a loss that is linear in the labels.

The laws of the estimators themselves are in test_contract.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.bilevel import lookahead
from distill.bilevel.forward_mode import ForwardMode
from distill.bilevel.lookahead import LookAhead
from distill.bilevel.probe import agreement, choose_estimator
from distill.bilevel.step import PlainStep, Training
from distill.bilevel.targets import meta_loss, soft_loss
from distill.data.loader import Batch
from distill.labels.learned import Learned
from distill.labels.tables import class_table
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


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adamw-clipped"])
def test_labels_are_freed_of_adam_s_step_as_of_sgd_s_learning_rate(optimizer: str) -> None:
    """A step made for SGD moved labels some ten times as far under AdamW: half of them were saturated in an epoch."""
    model, opt = cases.build("conv-batchnorm", optimizer)
    cases.plain_steps(model, opt, 20)
    images, _, labels = cases.batch(1, cases.B)
    inner = cases.inner_step(model, opt, images, labels, seed=3, clip=cases.clip_norm(optimizer))
    unclipped = LookAhead(inner.look_ahead.rules)
    g = {name: p.grad.clone().requires_grad_() for name, p in model.named_parameters()}
    r = {name: torch.randn_like(t) for name, t in inner.theta.items()}
    after = unclipped.step(inner.theta, g)
    v = torch.autograd.grad(sum((after[n] * r[n]).sum() for n in r), [g[n] for n in r])
    lowered = sum((a * b).abs().sum() for a, b in zip(v, r.values(), strict=True))
    found = inner.look_ahead.gain(r)
    torch.testing.assert_close(found * sum(t.square().sum() for t in r.values()), lowered)
    assert found > 5 * inner.look_ahead.lr


def test_of_sgd_labels_are_freed_of_lr_alone() -> None:
    model, opt = cases.build("conv-batchnorm", "clipped")
    images, _, labels = cases.batch(1, cases.B)
    inner = cases.inner_step(model, opt, images, labels, seed=3, clip=cases.clip_norm("clipped"))
    assert inner.look_ahead.gain(inner.theta) == 0.1


def test_labels_stay_where_adam_has_nothing_to_judge_by() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    (0.0 * model(torch.ones(1, 2)).sum()).backward()
    ahead = lookahead.record(optimizer, lookahead.trained_parameters(model), keep_state=False)
    assert ahead.gain({name: torch.ones_like(p) for name, p in model.named_parameters()}) == pytest.approx(1e-2)
    assert ahead.gain({name: torch.zeros_like(p) for name, p in model.named_parameters()}) == pytest.approx(1e-2)


BLOBS = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))


def blobs(number: int) -> Batch:
    """Points around five centres."""
    g = torch.Generator().manual_seed(number)
    given, rows = torch.randint(0, 5, (32,), generator=g), torch.arange(32)
    return Batch(rows, BLOBS[given] + 1.5 * torch.randn(32, 32, generator=g), given, rows, torch.zeros_like(rows))


def test_adamw_looks_past_units_that_no_batch_has_lit() -> None:
    """Adam's step depends 10^4 times as much on a gradient that was always 0, if the meta batch has any there.

    Such elements are nearly all of the direction and change nothing, so that a finite difference along it, chosen along
    a plain step's direction, had a cosine of .06 with the derivative and ten times its size.
    """
    torch.manual_seed(0)
    layers = (nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 5))
    model = nn.Sequential(*layers).train()
    nn.init.constant_(layers[0].bias, -2.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rule = Learned(class_table(5, 0.9, torch.device("cpu")), step=1.0)
    training = Training(model, optimizer, rule, seed=1)
    for number in range(30):
        PlainStep(training)(blobs(number), number, learn=False)
    estimator, report = choose_estimator("auto", training, blobs(900), blobs(901))
    assert "one-sided" in report
    for number in range(30, 34):
        batch, meta = blobs(number), blobs(number + 1000)
        logits = training.forward(batch, number)
        losses, target = soft_loss(rule, logits, batch)
        clip = training.update.backward(losses.mean())
        inner = training.record(batch, number, logits, target.labels, clip, keep_state=False)
        training.update.step()
        judged = meta_loss(model(meta.images), meta, 0.0).mean()
        r = training.update.meta_gradient(judged, retain_graph=False)
        cosine, scale = agreement(estimator(model, inner, r), ForwardMode()(model, inner, r))
        assert cosine > 0.999
        assert scale == pytest.approx(1, abs=0.01)


def test_a_parameter_without_a_gradient_has_no_rule() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    optimizer = torch.optim.AdamW(model.parameters())
    model["used"](torch.ones(1, 2)).sum().backward()
    found = lookahead.record(optimizer, lookahead.trained_parameters(model), keep_state=False)
    assert set(found.rules) == {"used.weight", "used.bias"}


def test_soft_cross_entropy_is_linear_in_the_labels() -> None:
    """What makes the fused form exact."""
    logits = torch.randn(3, 4, dtype=torch.float64)
    a, b = torch.rand(3, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    both = soft_cross_entropy(logits, 2 * a + b)
    torch.testing.assert_close(both, 2 * soft_cross_entropy(logits, a) + soft_cross_entropy(logits, b))

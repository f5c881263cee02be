"""The laws of `distill.bilevel.contract`, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from distill.bilevel import lookahead
from distill.bilevel.contract import Estimator
from distill.bilevel.finite_difference import FiniteDifference
from distill.bilevel.forward_mode import ForwardMode
from distill.bilevel.unrolled import Unrolled
from distill.errors import BilevelError
from distill.losses.soft import soft_cross_entropy
from tests.bilevel import cases


def gradients(model: nn.Module, images: Tensor, given: Tensor) -> dict[str, Tensor]:
    parameters = lookahead.trained_parameters(model)
    found = torch.autograd.grad(cases.meta_loss(model, images, given), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def setting(network: str, optimizer: str, warm: int, *, groups: bool = False):
    """A recorded step, the model after it and the meta gradient there."""
    model, opt = cases.build(network, optimizer, groups=groups)
    cases.plain_steps(model, opt, warm)
    images, _, labels = cases.batch(1, cases.B)
    meta_images, meta_given, _ = cases.batch(2, cases.M)
    before = copy.deepcopy((model, opt.state_dict()))
    inner = cases.inner_step(model, opt, images, labels, seed=9, clip=cases.clip_norm(optimizer))
    return model, inner, gradients(model, meta_images, meta_given), before


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("network", cases.NETWORKS)
@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS)
@pytest.mark.parametrize("warm", [0, 9])
def test_forward_mode_equals_unrolled(network: str, optimizer: str, warm: int) -> None:
    """At the first step and at the tenth."""
    if warm == 0 and optimizer not in cases.LEARNS_FROM_THE_FIRST_STEP:
        warm = 3
    model, inner, r, _ = setting(network, optimizer, warm)
    assert relative(ForwardMode()(model, inner, r), Unrolled()(model, inner, r)) < 1e-10


@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS)
def test_groups_with_different_rates(optimizer: str) -> None:
    model, inner, r, _ = setting("conv-batchnorm", optimizer, 2, groups=True)
    assert relative(ForwardMode()(model, inner, r), Unrolled()(model, inner, r)) < 1e-10


@pytest.mark.parametrize("network", cases.NETWORKS)
@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS)
@pytest.mark.parametrize("warm", [0, 3])
def test_unrolled_equals_difference_of_the_real_meta_loss(network: str, optimizer: str, warm: int) -> None:
    """An oracle that shares nothing with the estimators: torch's own optimiser steps, with one label entry moved."""
    if warm == 0 and optimizer not in cases.LEARNS_FROM_THE_FIRST_STEP:
        warm = 9
    model, inner, r, (model_before, state) = setting(network, optimizer, warm)
    found = Unrolled()(model, inner, r)
    images, _, labels = cases.batch(1, cases.B)
    meta_images, meta_given, _ = cases.batch(2, cases.M)
    h = 1e-4

    def meta_after(moved: Tensor) -> float:
        twin = copy.deepcopy(model_before)
        opt = cases.make_optimizer(optimizer, twin.parameters())
        opt.load_state_dict(copy.deepcopy(state))
        cases.inner_step(twin, opt, images, moved, seed=9, clip=cases.clip_norm(optimizer))
        return float(cases.meta_loss(twin, meta_images, meta_given).detach())

    for i, c in [(0, 0), (2, 3), (4, 1)]:
        step = torch.zeros_like(labels)
        step[i, c] = h
        slope = (meta_after(labels + step) - meta_after(labels - step)) / (2 * h)
        assert slope == pytest.approx(float(found[i, c]), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("network", cases.NETWORKS)
@pytest.mark.parametrize(("central", "order"), [(False, 1), (True, 2)])
def test_finite_difference_error_falls_with_its_order(network: str, central: bool, order: int) -> None:
    smooth = network != "conv-batchnorm"  # ReLU's kinks break the order there
    model, inner, r, _ = setting(network, "momentum", 2)
    exact = ForwardMode()(model, inner, r)
    far, near = (relative(FiniteDifference(central, reach)(model, inner, r), exact) for reach in (1e-2, 1e-3))
    assert near < (1e-3 if central else 5e-3)
    if smooth:
        assert far / near == pytest.approx(10**order, rel=0.1)


@pytest.mark.parametrize("network", cases.NETWORKS)
@pytest.mark.parametrize("estimator", [Unrolled(), ForwardMode(), FiniteDifference(), FiniteDifference(True)])
def test_no_trace_is_left(network: str, estimator: Estimator) -> None:
    model, inner, r, _ = setting(network, "nesterov", 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    random = torch.default_generator.get_state()
    estimator(model, inner, r)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(torch.default_generator.get_state(), random)
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_float32_stays_close_to_float64() -> None:
    model, inner, r, _ = setting("conv-batchnorm", "momentum", 3)
    exact = Unrolled()(model, inner, r)
    model = model.float()

    def single(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.float() for name, t in tensors.items()}

    fields = {**inner.__dict__, "theta": single(inner.theta)}
    for name in ("images", "labels", "log_probabilities"):
        fields[name] = fields[name].float()
    small = type(inner)(**fields)
    assert relative(ForwardMode()(model, small, single(r)).double(), exact) < 1e-5
    for estimator in (FiniteDifference(), FiniteDifference(True)):
        cosine = torch.cosine_similarity(estimator(model, small, single(r)).double().flatten(), exact.flatten(), dim=0)
        assert cosine > 0.999


def test_zero_meta_gradient_gives_zero() -> None:
    model, inner, r, _ = setting("conv-batchnorm", "momentum", 1)
    zero = {name: torch.zeros_like(t) for name, t in r.items()}
    for estimator in (Unrolled(), ForwardMode(), FiniteDifference(), FiniteDifference(True)):
        assert not estimator(model, inner, zero).any()


def test_eval_mode_is_refused() -> None:
    model, inner, r, _ = setting("conv-batchnorm", "momentum", 1)
    model.eval()
    with pytest.raises(BilevelError, match="eval mode"):
        FiniteDifference()(model, inner, r)


class _NoForwardRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


class _Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _NoForwardRule.apply(x)


class _Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy().copy())


@pytest.mark.parametrize("broken", [_Custom(), _Detached()])
def test_a_lost_tangent_is_an_error_and_never_zero(broken: nn.Module) -> None:
    model, inner, r, _ = setting("conv-batchnorm", "momentum", 1)
    with pytest.raises(BilevelError, match="forward-mode"):
        ForwardMode()(nn.Sequential(model, broken), *_renamed(inner, r))


def _renamed(inner, r):
    theta = {f"0.{name}": t for name, t in inner.theta.items()}
    rules = lookahead.LookAhead({f"0.{name}": rule for name, rule in inner.look_ahead.rules.items()})
    return type(inner)(**{**inner.__dict__, "theta": theta, "look_ahead": rules}), {f"0.{n}": t for n, t in r.items()}


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


class _Derived(torch.optim.SGD):
    """May step differently, so it has no rule."""


@pytest.mark.parametrize("kind", [_Derived, torch.optim.NAdam])
def test_other_optimisers_are_refused_with_a_cure(kind: type) -> None:
    model, _ = cases.build("dropout", "plain")
    with pytest.raises(BilevelError, match=r"has no look-ahead rule(.|\n)*momentum"):
        lookahead.record(kind(model.parameters(), lr=0.1), dict(model.named_parameters()), keep_state=False)


def test_frozen_parameters_stay_out_of_it() -> None:
    model, _ = cases.build("conv-batchnorm", "plain")
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    images, _, labels = cases.batch(1, cases.B)
    meta_images, given, _ = cases.batch(2, cases.M)
    inner = cases.inner_step(model, optimizer, images, labels, seed=9)
    r = gradients(model, meta_images, given)
    assert "0.weight" not in inner.theta
    assert relative(ForwardMode()(model, inner, r), Unrolled()(model, inner, r)) < 1e-10


def test_class_permutation_permutes_the_gradient() -> None:
    model, opt = cases.build("dropout", "momentum")
    order = torch.tensor([2, 0, 3, 1])
    results = []
    for permuted in (False, True):
        twin = copy.deepcopy(model)
        if permuted:
            with torch.no_grad():
                twin[-1].weight.copy_(model[-1].weight[order])
                twin[-1].bias.copy_(model[-1].bias[order])
        opt = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
        images, _, labels = cases.batch(1, cases.B)
        meta_images, given, _ = cases.batch(2, cases.M)
        inner = cases.inner_step(twin, opt, images, labels[:, order] if permuted else labels, seed=1)
        r = gradients(twin, meta_images, torch.argsort(order)[given] if permuted else given)
        results.append(ForwardMode()(twin, inner, r))
    torch.testing.assert_close(results[1], results[0][:, order], rtol=1e-10, atol=1e-14)


def test_soft_cross_entropy_is_linear_in_the_labels() -> None:
    """What makes the fused form exact."""
    logits = torch.randn(3, 4, dtype=torch.float64)
    a, b = torch.rand(3, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    both = soft_cross_entropy(logits, 2 * a + b)
    torch.testing.assert_close(both, 2 * soft_cross_entropy(logits, a) + soft_cross_entropy(logits, b))

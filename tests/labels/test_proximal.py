"""Proximal steps of labels: where they end, by their own equation and by what they minimise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import wrightomega
from torch import Tensor

from distill.errors import DataError
from distill.labels.learned import Learned
from distill.labels.proximal import proximal_labels
from distill.labels.pulls import Pulls
from distill.labels.tables import instance_table
from tests.labels.cases import CPU, GIVEN, IMAGES, C, N, images, learned, noise, table

DOUBLE = torch.float64


def step(a: float) -> Tensor:
    return torch.tensor(a, dtype=DOUBLE)


@pytest.mark.parametrize("a", [1e-3, 0.1, 1.0, 10.0, 100.0, 1e4])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_step_ends_where_its_own_gradient_is(a: float, spread: float, classes: int) -> None:
    phi = spread * noise(0, 8, classes, dtype=DOUBLE)
    for number, sharpness in enumerate((0.0, 1.0, 10.0, 100.0)):
        target = (sharpness * noise(number, 8, classes, dtype=DOUBLE)).softmax(-1)
        after = proximal_labels(phi, target, step(a))
        torch.testing.assert_close((phi + a * (target - after)).softmax(-1), after, rtol=0, atol=1e-6 * max(1, a / 100))


def test_a_row_agrees_with_a_solver_of_others() -> None:
    a, phi, target = 7.0, noise(1, 5, dtype=DOUBLE).numpy(), noise(2, 5, dtype=DOUBLE).softmax(-1).numpy()
    z = phi + a * target + np.log(a)
    s = brentq(lambda s: wrightomega(z - s).sum() - a, z.min() - 2 * a - 10, z.max() + 10, xtol=1e-13)
    found = proximal_labels(torch.from_numpy(phi), torch.from_numpy(target), step(a))
    np.testing.assert_allclose(found.numpy(), wrightomega(z - s) / a, atol=1e-8)


def test_a_small_step_is_the_explicit_one_and_a_large_one_arrives() -> None:
    phi, target = noise(1, 3, C, dtype=DOUBLE), noise(2, 3, C, dtype=DOUBLE).softmax(-1)
    torch.testing.assert_close(proximal_labels(phi, target, step(0.0)), phi.softmax(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(proximal_labels(phi, target, step(1e5)), target, rtol=0, atol=1e-3)


def test_a_step_of_the_rule_minimises_the_pull_and_the_way_there() -> None:
    rows = table("instance")
    rows = replace(rows, phi=rows.phi.double() + noise(3, N, C, dtype=DOUBLE))
    rule = Learned(rows, step=10.0, pulls=Pulls(start=0.2, answers=0.3, posterior=0.5, proximal=True))
    at, answers, gradient = images(1, 4), noise(8, 2, C, dtype=DOUBLE).softmax(-1), noise(9, 2, C, dtype=DOUBLE)
    y, before = rule.labels(*at), rows.phi[[1, 4]].clone()
    rule.learn(*at, y, gradient, scale=0.5, answers=answers)
    start = torch.full((2, C), 0.1, dtype=DOUBLE).scatter_(1, GIVEN[[1, 4]].unsqueeze(1), 0.7)
    q = (answers.log() + start.log()).softmax(-1)
    judged = before - 10.0 * 0.5 * y * (gradient - (y * gradient).sum(-1, keepdim=True))
    phi = rows.phi[[1, 4]].clone().requires_grad_()
    cross = -((0.2 * start + 0.3 * answers + 0.5 * q) * phi.log_softmax(-1)).sum()
    (left,) = torch.autograd.grad(10.0 * cross + 0.5 * (phi - judged).square().sum(), phi)
    torch.testing.assert_close(left, torch.zeros_like(left), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["class", "instance"])
def test_no_label_overshoots(kind) -> None:
    at, answers = images(0, 4), torch.tensor([[0.1, 0.6, 0.2, 0.1]]).expand(2, C)  # both are given as class 0
    ends = {}
    for proximal in (False, True):
        rule = Learned(table(kind), step=100.0, pulls=Pulls(answers=1.0, proximal=proximal))
        rule.learn(*at, rule.labels(*at), torch.zeros(2, C), scale=1.0, answers=answers)
        ends[proximal] = rule.labels(*at)
    assert ends[False].max() > 0.999
    torch.testing.assert_close(ends[True], answers, rtol=0, atol=0.05)


@pytest.mark.parametrize(("size", "weight"), [(1e4, 1.0), (1e6, 1e3), (1e6, 1e6)])
def test_the_largest_steps_of_float32_end_at_the_target_too(size: float, weight: float) -> None:
    rule = Learned(table("instance"), step=size, pulls=Pulls(answers=0.5 * weight, start=0.5 * weight, proximal=True))
    at, answers = images(*range(N)), noise(2, N, C).softmax(-1)
    start = torch.full((N, C), 0.1).scatter_(1, GIVEN.unsqueeze(1), 0.7)
    for _ in range(3):
        rule.learn(*at, rule.labels(*at), torch.zeros(N, C), scale=1.0, answers=answers)
        torch.testing.assert_close(rule.labels(*at), (start + answers) / 2, rtol=0, atol=2e-3)


def test_with_a_class_prior_it_ends_short_of_the_target() -> None:
    rows = instance_table(IMAGES, GIVEN, C, 0.7, CPU, with_prior=True)
    rule = Learned(rows, step=50.0, prior_step=50.0, pulls=Pulls(answers=1.0, proximal=True))
    answers, at = torch.tensor([[0.1, 0.6, 0.2, 0.1]]), images(0)
    rule.learn(*at, rule.labels(*at), torch.zeros(1, C), scale=1.0, answers=answers)
    torch.testing.assert_close(rule.labels(*at), answers, rtol=0, atol=0.05)


def test_without_answers_there_is_nothing_to_be_drawn_to() -> None:
    rule = Learned(table("instance"), step=10.0, pulls=Pulls(posterior=1.0, proximal=True))
    before, at = rule.table.phi.clone(), images(0, 3)
    rule.learn(*at, rule.labels(*at), torch.zeros(2, C), scale=1.0)
    assert torch.equal(before, rule.table.phi)


def test_frozen_labels_stay() -> None:
    rule = Learned(table("instance"), step=10.0, pulls=Pulls(answers=1.0, proximal=True))
    rule.set_factor(0.0)
    before, at = rule.table.phi.clone(), images(0, 3)
    rule.learn(*at, rule.labels(*at), noise(0, 2, C), scale=1.0, answers=noise(2, 2, C).softmax(-1))
    assert torch.equal(before, rule.table.phi)


@pytest.mark.parametrize(
    ("parametrisation", "optimizer", "pulls"),
    [
        ("fixed-mass", "sgd", Pulls(answers=1.0, proximal=True)),
        ("softmax", "adam", Pulls(answers=1.0, proximal=True)),
        ("softmax", "momentum", Pulls(answers=1.0, proximal=True)),
        ("softmax", "sgd", Pulls(answers=1.0, entropy=0.1, proximal=True)),
    ],
)
def test_where_a_step_ends_is_known_of_plain_ones_only(parametrisation, optimizer, pulls) -> None:
    with pytest.raises(DataError, match="proximal pulls, expected"):
        learned("instance", parametrisation, optimizer, pulls=pulls)

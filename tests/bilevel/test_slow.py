"""The running mean of the weights whose answers labels are pulled to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distill.bilevel.forward_mode import ForwardMode
from distill.bilevel.label_step import LabelStep
from distill.bilevel.slow import SlowNetwork
from distill.bilevel.step import HeldOutStep, NextBatchStep, Step, Training
from distill.labels.learned import Learned
from distill.labels.pulls import Pulls
from distill.labels.tables import instance_table
from tests.bilevel import cases
from tests.bilevel.test_step import N, batch_of

DECAY, WEIGHT = 0.7, 0.4


def by_hand(means: dict[str, Tensor], model: nn.Module, updates: int) -> dict[str, Tensor]:
    """timm's mean: its decay grows from 0 as 1 - u^(-2/3) until it is DECAY; counts are taken as they are."""
    decay = min(DECAY, 1 - updates ** (-2 / 3))
    found = {}
    for name, value in model.state_dict().items():
        whole = value.is_floating_point()
        found[name] = decay * means[name] + (1 - decay) * value if whole else value.clone()
    return found


def made(source: str) -> tuple[Training, LabelStep, Step]:
    model, optimizer = cases.build("conv-batchnorm", "nesterov")
    given = torch.cat([batch_of(number).given for number in range(N // cases.B)])
    table = instance_table(torch.arange(N), given, cases.C, 0.7, torch.device("cpu"))
    table.phi = table.phi.double()
    # No derivative: a label step of 0 leaves the pull alone.
    training = Training(model, optimizer, Learned(table, step=1.0, pulls=Pulls(answers=WEIGHT)), seed=5)
    label_step = LabelStep(training.rule, ForwardMode(), 0.0, SlowNetwork(model, DECAY))
    if source == "held-out":
        return training, label_step, HeldOutStep(training, label_step, lambda number: batch_of(number + 3))
    return training, label_step, NextBatchStep(training, label_step)


@pytest.mark.parametrize("source", ["held-out", "next-batch"])
def test_it_is_the_mean_of_the_weights_after_each_step(source: str) -> None:
    training, label_step, step = made(source)
    expected = {name: value.clone() for name, value in training.model.state_dict().items()}
    for number in range(6):
        step(batch_of(number), number, learn=number > 2)
        expected = by_hand(expected, training.model, number + 1)
    found = label_step.slow.ema.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


def test_labels_are_pulled_to_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    training, label_step, step = made("held-out")
    for number in range(3):
        step(batch_of(number), number, learn=False)
    monkeypatch.setattr(LabelStep, "_averaged", lambda self, r: {name: torch.zeros_like(t) for name, t in r.items()})
    rows, before = batch_of(3).rows, training.rule.table.phi.clone()
    labels = before[rows].softmax(-1)
    step(batch_of(3), 3, learn=True)
    label_step.slow.ema.module.eval()
    with torch.no_grad():
        answers = label_step.slow.ema.module(batch_of(3).images).softmax(-1)
    pulled = before[rows] + WEIGHT * (answers - labels)  # KL(p || y) has the derivative y - p by the row
    torch.testing.assert_close(training.rule.table.phi[rows], pulled, rtol=1e-10, atol=1e-12)


def test_it_leaves_the_network_alone_and_comes_back_from_its_state() -> None:
    model, _ = cases.build("conv-batchnorm", "nesterov")
    slow, other = SlowNetwork(model, DECAY), SlowNetwork(model, DECAY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    slow.follow(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    slow.follow(model)
    other.load_state_dict(slow.state_dict())
    images = batch_of(0).images
    assert torch.equal(slow.answers(images), other.answers(images))
    torch.testing.assert_close(slow.answers(images).sum(-1), torch.ones(cases.B, dtype=torch.float64))
    for p in model.parameters():
        p.detach().sub_(1.0)
    assert all(torch.equal(value.isnan(), before[name].isnan()) for name, value in model.state_dict().items())
    for kept in (slow, other):
        kept.follow(model)
    assert torch.equal(slow.answers(images), other.answers(images))

"""Whole training steps: what they learn, and that learning labels does not disturb training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from distill.bilevel.contract import Estimator
from distill.bilevel.finite_difference import FiniteDifference
from distill.bilevel.forward_mode import ForwardMode
from distill.bilevel.label_step import LabelStep
from distill.bilevel.last_layer import LastLayer
from distill.bilevel.probe import APPROXIMATIONS, ESTIMATORS, choose_estimator
from distill.bilevel.step import HeldOutStep, NextBatchStep, PlainStep, Step, Training
from distill.bilevel.unrolled import Unrolled
from distill.data.loader import Batch
from distill.errors import BilevelError
from distill.labels.rules import Learned
from distill.labels.tables import class_table, instance_table
from distill.losses.soft import cross_entropy, soft_cross_entropy
from tests.bilevel import cases

N = 40


def batch_of(number: int, size: int = cases.B) -> Batch:
    images, given, _ = cases.batch(number, size)
    rows = torch.arange(size) + number * size % N
    return Batch(rows, images, given, rows, torch.zeros_like(rows))


def learned(kind: str, step: float, parametrisation: str = "softmax") -> Learned:
    torch.set_default_dtype(torch.float64)
    try:
        if kind == "class":
            table = class_table(cases.C, 0.7, torch.device("cpu"), parametrisation)
        else:
            given = torch.cat([batch_of(number).given for number in range(N // cases.B)])
            table = instance_table(torch.arange(N), given, cases.C, 0.7, torch.device("cpu"), parametrisation)
    finally:
        torch.set_default_dtype(torch.float32)
    return Learned(table, step=step)


def build(
    meta: str, kind: str, step: float, estimator: Estimator | None = None, parametrisation: str = "softmax"
) -> tuple[Training, Step]:
    model, opt = cases.build("conv-batchnorm", "nesterov")
    training = Training(model, opt, learned(kind, step, parametrisation), seed=5)
    if meta == "none":
        return training, PlainStep(training)
    label_step = LabelStep(training.rule, estimator or ForwardMode(), 0.0)
    if meta == "held-out":
        return training, HeldOutStep(training, label_step, lambda number: batch_of(1000 + number, cases.M))
    return training, NextBatchStep(training, label_step)


@pytest.mark.parametrize("meta", ["held-out", "next-batch"])
@pytest.mark.parametrize("kind", ["class", "instance"])
def test_with_label_step_0_training_is_plain_training_to_the_bit(meta: str, kind: str) -> None:
    trainings = []
    for source in ("none", meta):
        training, step = build(source, kind, step=0.0)
        for number in range(6):
            step(batch_of(number), number, learn=True)
        trainings.append(training)
    plain, other = (t.model.state_dict() for t in trainings)
    assert all(torch.equal(plain[name], other[name]) for name in plain)


@pytest.mark.parametrize("meta", ["held-out", "next-batch"])
@pytest.mark.parametrize("kind", ["class", "instance"])
@pytest.mark.parametrize("parametrisation", ["softmax", "projected"])
def test_the_fused_step_moves_labels_like_a_slow_one(meta: str, kind: str, parametrisation: str) -> None:
    """The same run by forward-mode and by double backward, over several steps, label table and weights."""
    results = []
    for estimator in (ForwardMode(), Unrolled()):
        training, step = build(meta, kind, step=0.5, estimator=estimator, parametrisation=parametrisation)
        for number in range(5):
            step(batch_of(number), number, learn=True)
        results.append((training.rule.table.phi, training.model.state_dict()))
    (fast, weights), (slow, expected) = results
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12)


def meta_loss_after(training: Training, labels: Tensor, first: Batch, second: Batch) -> float:
    """L_meta after one real step on `first` with these labels; for next-batch `second` meets train-mode BatchNorm."""
    twin = copy.deepcopy(training)
    logits = twin.forward(first, 0)
    twin.update.backward(soft_cross_entropy(logits, labels).mean())
    twin.optimizer.step()
    return float(cross_entropy(twin.forward(second, 1), second.given).mean().detach())


def test_next_batch_label_step_is_the_true_derivative_of_the_next_training_loss() -> None:
    training, step = build("next-batch", "instance", step=1.0)
    before = copy.deepcopy(training)
    first, second = batch_of(0), batch_of(1)
    phi = training.rule.table.phi.clone()
    step(first, 0, learn=True)
    step(second, 1, learn=False)
    moved = phi - training.rule.table.phi  # label step 1: the gradient in phi, times B/lr
    h = 1e-5
    for row, column in [(0, 1), (3, 2)]:
        slopes = []
        for sign in (1, -1):
            shifted = phi.clone()
            shifted[row, column] += sign * h
            slopes.append(meta_loss_after(before, torch.softmax(shifted[first.rows], -1), first, second))
        slope = (slopes[0] - slopes[1]) / (2 * h)
        assert float(moved[row, column]) == pytest.approx(slope * cases.B / 0.1, rel=1e-5)


def test_every_other_step_learns_only_when_told() -> None:
    training, step = build("next-batch", "instance", step=1.0)
    before = training.rule.table.phi.clone()
    step(batch_of(0), 0, learn=False)
    step(batch_of(1), 1, learn=True)
    assert torch.equal(training.rule.table.phi, before)
    step(batch_of(2), 2, learn=False)
    changed = (training.rule.table.phi != before).any(-1).nonzero().squeeze(1)
    assert changed.tolist() == batch_of(1).rows.tolist()


def test_a_meta_gradient_that_is_not_finite_is_an_error() -> None:
    _, step = build("next-batch", "instance", step=1.0)
    step(batch_of(0), 0, learn=True)
    broken = batch_of(1)
    broken.images[0, 0, 0, 0] = torch.nan
    step(broken, 1, learn=False)
    with pytest.raises(BilevelError, match="not finite"):
        step.check()


@pytest.mark.parametrize("name", [*(name for name in ESTIMATORS if name not in APPROXIMATIONS), "auto"])
@pytest.mark.parametrize("network", cases.NETWORKS)
def test_the_probe_passes_and_leaves_no_trace(name: str, network: str) -> None:
    model, optimizer = cases.build(network, "momentum")
    training = Training(model, optimizer, learned("instance", 1.0), seed=5)
    before = copy.deepcopy(model.state_dict())
    estimator, report = choose_estimator(name, training, batch_of(0), batch_of(1))
    assert estimator.name == ("one-sided" if name == "auto" else name)
    assert "cosine" in report
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("fault", ["direction", "factor"])
def test_the_probe_refuses_a_wrong_estimator(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """`factor` is the bug that shipped in three projects: / 2. * eps for / (2 * eps). A cosine alone misses it."""
    model, optimizer = cases.build("conv-batchnorm", "momentum")
    training = Training(model, optimizer, learned("instance", 1.0), seed=5)

    class Wrong(FiniteDifference):
        def __call__(self, model, inner, meta_gradient):
            if fault == "factor":
                return super().__call__(model, inner, meta_gradient) * self.reach**2
            return super().__call__(model, inner, {n: r.abs() for n, r in meta_gradient.items()})

    monkeypatch.setitem(ESTIMATORS, "one-sided", Wrong())
    with pytest.raises(BilevelError, match="no estimator passes"):
        choose_estimator("one-sided", training, batch_of(0), batch_of(1))
    estimator, report = choose_estimator("auto", training, batch_of(0), batch_of(1))
    assert estimator.name == "central"
    assert "passed over" in report


@pytest.mark.parametrize(("fault", "accepted"), [("rounding", True), ("method", False)])
def test_an_exact_estimator_may_round_but_not_err(monkeypatch: pytest.MonkeyPatch, fault: str, accepted: bool) -> None:
    """On some deep networks at their initial weights float32 double backward itself has cosine .98 with float64."""
    training = Training(*cases.build("conv-batchnorm", "momentum"), learned("instance", 1.0), seed=5)
    training.model.float()
    training.rule = _single(training.rule)

    class Noisy(ForwardMode):
        def __call__(self, model, inner, meta_gradient):
            exact = super().__call__(model, inner, meta_gradient)
            wrong = fault == "method" or exact.dtype == torch.float32
            noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0)).to(exact)
            return exact + 0.1 * exact.norm() / noise.norm() * noise if wrong else exact

    monkeypatch.setitem(ESTIMATORS, "forward-mode", Noisy())
    batches = _single_batch(batch_of(0)), _single_batch(batch_of(1))
    if accepted:
        _, report = choose_estimator("forward-mode", training, *batches)
        assert "rounding in float32" in report
    else:
        with pytest.raises(BilevelError, match="no estimator passes"):
            choose_estimator("forward-mode", training, *batches)


def test_bfloat16_takes_forward_mode() -> None:
    torch.manual_seed(0)
    model = cases.NETWORKS["conv-batchnorm"]()
    training = Training(
        model, torch.optim.SGD(model.parameters(), lr=0.1), _single(learned("instance", 1.0)), 5, "bfloat16"
    )
    first, second = (_single_batch(batch_of(number)) for number in (0, 1))
    estimator, _ = choose_estimator("auto", training, first, second)
    assert estimator.name == "forward-mode"
    step = NextBatchStep(training, LabelStep(training.rule, estimator, 0.0))
    for number, batch in enumerate((first, second)):
        step(batch, number, learn=True)
    step.check()


def _single(rule: Learned) -> Learned:
    rule.table.phi = rule.table.phi.float()
    return Learned(rule.table, step=1.0)


def _single_batch(batch: Batch) -> Batch:
    return Batch(batch.indices, batch.images.float(), batch.given, batch.rows, batch.view)


class Headed(torch.nn.Module):
    """A network with timm's name for its last layer."""

    def __init__(self) -> None:
        super().__init__()
        layers = list(cases.conv_net())
        self.body, self.head = torch.nn.Sequential(*layers[:-1]), layers[-1]

    def get_classifier(self) -> torch.nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("meta", ["held-out", "next-batch"])
@pytest.mark.parametrize("frozen", [True, False])
def test_last_layer_is_exact_when_only_the_head_trains(meta: str, frozen: bool) -> None:
    results = []
    for estimator in (LastLayer(), Unrolled()):
        torch.manual_seed(0)
        model = Headed().double().train()
        model.body.requires_grad_(not frozen)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        training = Training(model, optimizer, learned("instance", 2.0), seed=5)
        label_step = LabelStep(training.rule, estimator, 0.0)
        held_out = HeldOutStep(training, label_step, lambda number: batch_of(1000 + number, cases.M))
        step = held_out if meta == "held-out" else NextBatchStep(training, label_step)
        before = training.rule.table.phi.clone()
        for number in range(4):
            step(batch_of(number), number, learn=True)
        results.append(training.rule.table.phi - before)
    cosine = torch.cosine_similarity(*(moved.flatten() for moved in results), dim=0)
    if frozen:
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
    else:
        assert 0 < cosine < 0.9999  # an approximation, which is why the probe tells its cosine


def test_last_layer_is_taken_when_asked_for_and_refused_without_a_head() -> None:
    torch.manual_seed(0)
    model = Headed().double().train()
    training = Training(model, torch.optim.SGD(model.parameters(), lr=0.1), learned("instance", 1.0), seed=5)
    estimator, report = choose_estimator("last-layer", training, batch_of(0), batch_of(1))
    assert estimator.name == "last-layer"
    assert "approximation" in report
    model, optimizer = cases.build("conv-batchnorm", "plain")
    with pytest.raises(BilevelError, match="expected a linear layer"):
        choose_estimator(
            "last-layer", Training(model, optimizer, learned("instance", 1.0), 5), batch_of(0), batch_of(1)
        )

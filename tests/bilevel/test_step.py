"""Whole training steps, and the choice of an estimator. That they learn what they should is in test_contract.py."""

from __future__ import annotations

import copy

import pytest
import torch

from distill.bilevel.contract import InnerStep, Tensors
from distill.bilevel.estimators import APPROXIMATIONS, ESTIMATORS
from distill.bilevel.finite_difference import FiniteDifference
from distill.bilevel.forward_mode import ForwardMode
from distill.bilevel.label_step import LabelStep
from distill.bilevel.probe import agreement, choose_estimator, reference_gradient, trial_step
from distill.bilevel.step import NextBatchStep, Step, Training
from distill.bilevel.unrolled import Unrolled
from distill.data.loader import Batch
from distill.errors import BilevelError
from distill.labels.learned import Learned
from distill.labels.tables import instance_table
from tests.bilevel import cases

N = 40


def batch_of(number: int, size: int = cases.B) -> Batch:
    images, given, _ = cases.batch(number, size)
    rows = torch.arange(size) + number * size % N
    return Batch(rows, images, given, rows, torch.zeros_like(rows))


def learned(step: float) -> Learned:
    given = torch.cat([batch_of(number).given for number in range(N // cases.B)])
    table = instance_table(torch.arange(N), given, cases.C, 0.7, torch.device("cpu"))
    table.phi = table.phi.double()
    return Learned(table, step=step)


def next_batch_step() -> tuple[Training, Step]:
    model, opt = cases.build("conv-batchnorm", "nesterov")
    training = Training(model, opt, learned(1.0), seed=5)
    return training, NextBatchStep(training, LabelStep(training.rule, ForwardMode(), 0.0))


def test_every_other_step_learns_only_when_told() -> None:
    training, step = next_batch_step()
    before = training.rule.table.phi.clone()
    step(batch_of(0), 0, learn=False)
    step(batch_of(1), 1, learn=True)
    assert torch.equal(training.rule.table.phi, before)
    step(batch_of(2), 2, learn=False)
    changed = (training.rule.table.phi != before).any(-1).nonzero().squeeze(1)
    assert changed.tolist() == batch_of(1).rows.tolist()


def test_a_meta_gradient_that_is_not_finite_is_an_error() -> None:
    _, step = next_batch_step()
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
    training = Training(model, optimizer, learned(1.0), seed=5)
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
    training = Training(model, optimizer, learned(1.0), seed=5)

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


def test_auto_does_not_unroll_a_step_that_was_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Unrolled` differentiates a step of the forward divergence, which is another one than the reverse's."""
    model, optimizer = cases.build("conv-batchnorm", "momentum")
    rule = learned(1.0)
    training = Training(model, optimizer, rule, seed=5)

    class Blind(FiniteDifference):
        def __call__(self, model, inner, meta_gradient):
            return torch.zeros_like(inner.labels)

    for name in ("one-sided", "central", "forward-mode"):
        monkeypatch.setitem(ESTIMATORS, name, Blind())
    assert choose_estimator("auto", training, batch_of(0), batch_of(1))[0].name == "unrolled"
    rule.divergence = "reverse"
    with pytest.raises(BilevelError, match=r"central: cosine nan"):
        choose_estimator("auto", training, batch_of(0), batch_of(1))


def step_with_sound_reference(
    layer: torch.nn.Module,
) -> tuple[tuple[torch.nn.Module, InnerStep, Tensors], torch.Tensor]:
    """What an estimator is called with, for a network that ends in the layer, and the exact derivative."""
    model, optimizer = cases.build("conv-batchnorm", "momentum")
    model = torch.nn.Sequential(model, layer)
    training = Training(model, optimizer, learned(1.0), seed=5)
    inner, r = trial_step(training, batch_of(0), batch_of(1))
    exact = Unrolled()(model, inner, r)
    reference, _ = reference_gradient(model, inner, r)
    assert agreement(reference, exact)[0] > 0.999
    return (model, inner, r), exact


class RoundsToFloat32(torch.nn.Module):
    """A layer that works in float32 whatever it is given, as some of timm's attention does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (10 + x).float().to(x.dtype) - 10


def test_the_reference_bears_a_part_in_float32() -> None:
    step, exact = step_with_sound_reference(RoundsToFloat32())
    assert agreement(FiniteDifference(central=True, reach=1e-6)(*step), exact)[0] < 0.99


class Ripples(torch.nn.Module):
    """Kinks everywhere, 1e-6 apart, as ReLUs of a deep network at its initial weights nearly have them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1e-6 * (torch.remainder(1e6 * x, 1) - 0.5).abs()


def test_the_reference_keeps_within_kinks() -> None:
    step, _ = step_with_sound_reference(Ripples())
    near, far = (FiniteDifference(central=True, reach=reach)(*step) for reach in (1e-6, 1e-5))
    assert agreement(near, far)[0] < 0.99, "the case is too easy: neighbours agree"


@pytest.mark.parametrize(("fault", "accepted"), [("rounding", True), ("method", False)])
def test_an_exact_estimator_may_round_but_not_err(monkeypatch: pytest.MonkeyPatch, fault: str, accepted: bool) -> None:
    """On some deep networks at their initial weights float32 double backward itself has cosine .98 with float64."""
    training = Training(*cases.build("conv-batchnorm", "momentum"), learned(1.0), seed=5)
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


def test_bfloat16_takes_central_differences() -> None:
    torch.manual_seed(0)
    model = cases.NETWORKS["conv-batchnorm"]()
    training = Training(model, torch.optim.SGD(model.parameters(), lr=0.1), _single(learned(1.0)), 5, "bfloat16")
    first, second = (_single_batch(batch_of(number)) for number in (0, 1))
    estimator, _ = choose_estimator("auto", training, first, second)
    assert estimator.name == "central"
    step = NextBatchStep(training, LabelStep(training.rule, estimator, 0.0))
    for number, batch in enumerate((first, second)):
        step(batch, number, learn=True)
    step.check()


def _single(rule: Learned) -> Learned:
    rule.table.phi = rule.table.phi.float()
    return Learned(rule.table, step=1.0)


def _single_batch(batch: Batch) -> Batch:
    return Batch(batch.indices, batch.images.float(), batch.given, batch.rows, batch.view)


def test_last_layer_is_taken_when_asked_for_and_refused_without_a_head() -> None:
    model, optimizer = cases.build("conv-batchnorm", "plain")
    training = Training(model, optimizer, learned(1.0), seed=5)
    estimator, report = choose_estimator("last-layer", training, batch_of(0), batch_of(1))
    assert estimator.name == "last-layer"
    assert "approximation" in report
    headless = Training(torch.nn.Sequential(*model), optimizer, learned(1.0), seed=5)
    with pytest.raises(BilevelError, match="expected a linear layer"):
        choose_estimator("last-layer", headless, batch_of(0), batch_of(1))

"""Half precision: which estimator is right there, and that a step that float16 skips moves no label."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.bilevel.estimators import ESTIMATORS
from distill.bilevel.forward_mode import ForwardMode
from distill.bilevel.label_step import LabelStep
from distill.bilevel.probe import agreement, choose_estimator, trial_step
from distill.bilevel.step import HeldOutStep, NextBatchStep, PlainStep, Step, Training
from distill.data.loader import Batch
from distill.errors import BilevelError
from distill.labels.learned import Learned
from distill.labels.tables import instance_table
from tests.bilevel import cases

N, SIZE = 24, 8


def batch_of(number: int) -> Batch:
    images, given, _ = cases.batch(number, SIZE)
    rows = torch.arange(SIZE) + number * SIZE % N
    return Batch(rows, images.float(), given, rows, torch.zeros_like(rows))


def training(precision: str, network: str = "conv-batchnorm") -> Training:
    torch.manual_seed(0)
    model = cases.NETWORKS[network]().train()
    given = torch.cat([batch_of(number).given for number in range(N // SIZE)])
    rule = Learned(instance_table(torch.arange(N), given, cases.C, 0.7, torch.device("cpu")), step=1.0, momentum=0.5)
    return Training(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rule, 5, precision)


def step_of(made: Training, meta: str) -> Step:
    assert isinstance(made.rule, Learned)
    label_step = LabelStep(made.rule, ForwardMode(), 0.0)
    if meta == "held-out":
        return HeldOutStep(made, label_step, lambda number: batch_of(number + 1))
    return NextBatchStep(made, label_step)


def rescale(made: Training, scale: float) -> None:
    made.update.scaler = torch.amp.GradScaler("cpu", init_scale=scale)


def everything(made: Training) -> dict[str, Tensor]:
    assert isinstance(made.rule, Learned)
    momentum = {str(i): s["momentum_buffer"] for i, s in made.optimizer.state_dict()["state"].items()}
    labels = {"phi": made.rule.table.phi, "touched": made.rule.optimizer.touched}
    return {k: v.clone() for k, v in {**dict(made.model.named_parameters()), **momentum, **labels}.items()}


@pytest.mark.parametrize("network", ["conv-batchnorm", "vit"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_takes_central_differences_and_learns(network: str, precision: str) -> None:
    made = training(precision, network)
    estimator, report = choose_estimator("auto", made, batch_of(0), batch_of(1))
    assert estimator.name == "central"
    assert "float64" in report or "float32" in report
    inner, r = trial_step(made, batch_of(0), batch_of(1))
    single = training("float32", network)
    exact = ESTIMATORS["forward-mode"](single.model, *trial_step(single, batch_of(0), batch_of(1)))
    cosine, scale = agreement(estimator(made.model, inner, r), exact)
    assert cosine > 0.99
    assert scale == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("size", [1e-4, 1e-9])
def test_float16_holds_a_small_meta_gradient(size: float) -> None:
    """Times a learning rate it would be below float16's smallest number."""
    made = training("float16")
    inner, r = trial_step(made, batch_of(0), batch_of(1))
    small = {name: t * size for name, t in r.items()}
    cosine, scale = agreement(ForwardMode()(made.model, inner, small), ForwardMode()(made.model, inner, r))
    assert cosine > 0.9999
    assert scale == pytest.approx(size, rel=1e-2)


@pytest.mark.parametrize("meta", ["held-out", "next-batch"])
def test_a_skipped_step_moves_no_label_and_no_weight(meta: str) -> None:
    made = training("float16")
    step = step_of(made, meta)
    for number in range(3):  # momentum everywhere, labels moved
        step(batch_of(number), number, learn=True)
    if isinstance(step, NextBatchStep):
        step.pending = None
    before = everything(made)
    rescale(made, 2.0**60)
    step(batch_of(3), 3, learn=True)
    assert made.update.scaler is not None
    assert made.update.scaler.get_scale() == 2.0**59
    after = everything(made)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    if isinstance(step, NextBatchStep):
        assert step.pending is None  # nothing that the next batch could judge
    rescale(made, 1024.0)
    for number in (4, 5):
        step(batch_of(number), number, learn=True)
    step.check()
    after = everything(made)
    assert not torch.equal(before["phi"], after["phi"])


def test_a_meta_gradient_that_overflows_judges_nothing() -> None:
    """The labels keep their place, and are judged again once the scale has come down."""
    made = training("float16")
    step = step_of(made, "next-batch")
    step(batch_of(0), 0, learn=True)
    before = everything(made)
    made.update.meta_scale = 2.0**28
    step(batch_of(1), 1, learn=True)
    assert torch.equal(before["phi"], everything(made)["phi"])
    assert made.update.meta_scale == 2.0**27
    for number in range(2, 20):
        step(batch_of(number), number, learn=True)
    step.check()
    assert not torch.equal(before["phi"], everything(made)["phi"])


def judged(made: Training) -> tuple[bool, float]:
    """Whether a judgement of today's network came about, and the size of its gradient."""
    batch = batch_of(1)
    loss = torch.nn.functional.cross_entropy(made.forward(batch, 0).float(), batch.given)
    r = made.update.meta_gradient(loss, retain_graph=False)
    return r is not None, 0.0 if r is None else float(torch.stack([t.norm() for t in r.values()]).norm())


def test_the_judge_has_a_scale_of_its_own() -> None:
    """Fitted labels have small gradients: the training loss's scale grows till nothing would be judged any more."""
    made = training("float16")
    expected = judged(made)
    rescale(made, 2.0**40)
    assert judged(made) == expected
    assert expected[0]


def test_the_judge_s_scale_grows_like_torch_s() -> None:
    made = training("float16")
    first = made.update.meta_scale
    for _ in range(2000):
        made.update._counted(True)
    assert made.update.meta_scale == 2 * first
    assert made.update._counted(False) is False
    assert made.update.meta_scale == first
    assert made.update.state_dict()["sound"] == 0


def test_a_meta_gradient_that_is_never_finite_is_an_error() -> None:
    made = training("float16")

    def judge() -> None:
        for _ in range(100):
            made.update.meta_gradient(made.forward(batch_of(0), 0).float().sum() * torch.inf, retain_graph=False)

    with pytest.raises(BilevelError, match="overflows in float16 at any scale") as refused:
        judge()
    assert "bfloat16" in refused.value.cure


@pytest.mark.parametrize("meta", ["held-out", "next-batch"])
def test_scale_and_all_else_come_back(meta: str) -> None:
    made = training("float16")
    step = step_of(made, meta)
    for number in range(2):
        step(batch_of(number), number, learn=True)
    twin = copy.deepcopy(made)
    other = step_of(twin, meta)
    twin.update.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    other.load_state_dict(step.state_dict())
    for one in (step, other):
        for number in (2, 3):
            one(batch_of(number), number, learn=True)
    found, expected = everything(twin), everything(made)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_plain_steps_skip_too() -> None:
    made = training("float16")
    step = PlainStep(made)
    rescale(made, 2.0**60)
    before = {name: p.clone() for name, p in made.model.named_parameters()}
    step(batch_of(0), 0, learn=False)
    assert all(torch.equal(p, before[name]) for name, p in made.model.named_parameters())
    rescale(made, 1024.0)
    step(batch_of(1), 1, learn=False)
    assert any(not torch.equal(p, before[name]) for name, p in made.model.named_parameters())


@pytest.mark.parametrize(("name", "expected"), [("central", "none"), ("forward-mode", "none"), ("one-sided", "tf32")])
def test_tf32_is_off_where_digits_count(name: str, expected: str) -> None:
    """One-sided differences start from the training forward, so they keep what that had."""
    made, seen = training("float32"), []
    inner, r = trial_step(made, batch_of(0), batch_of(1))
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision
    made.model.register_forward_pre_hook(lambda module, given: seen.append(conv.fp32_precision))
    ESTIMATORS[name](made.model, inner, r)
    assert set(seen) == {expected}
    assert conv.fp32_precision == before == "tf32"
    assert torch.backends.cudnn.allow_tf32  # the older flag can still be asked for

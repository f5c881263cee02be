"""Every form of label rows, through whole steps: plain double backward in phi and in the class prior is the oracle."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from distill.bilevel import hygiene
from distill.bilevel.estimators import ESTIMATORS
from distill.bilevel.step import Training
from distill.data.batches import Batch, Mix
from distill.labels.learned import Learned
from distill.labels.tables import LabelTable, class_table, instance_table
from distill.losses.soft import cross_entropy, soft_cross_entropy
from tests.bilevel import cases

LR, MASS = 0.1, 0.7
FORMS = {
    "class": ("class", "softmax", False),
    "instance": ("instance", "softmax", False),
    "class+instance": ("instance", "softmax", True),
    "class, fixed mass": ("class", "fixed-mass", False),
    "instance, fixed mass": ("instance", "fixed-mass", False),
}


def table_of(form: str) -> LabelTable:
    """In float64, and away from where it starts."""
    kind, parametrisation, with_prior = FORMS[form]
    if kind == "class":
        table = class_table(cases.C, MASS, cases.CPU, parametrisation)
    else:
        images = torch.arange(cases.IMAGES)
        table = instance_table(
            images, cases.given_labels(), cases.C, MASS, cases.CPU, parametrisation, with_prior=with_prior
        )
    noise = torch.Generator().manual_seed(4)
    phi = table.phi.double() + torch.randn(table.phi.shape, generator=noise, dtype=torch.float64)
    prior = None if table.prior is None else torch.randn(table.prior.shape, generator=noise, dtype=torch.float64)
    return replace(table, phi=phi, prior=prior)


def labels_of(table: LabelTable, phi: Tensor, prior: Tensor | None) -> Tensor:
    """Every row's label [R, C], written again from the definition."""
    if prior is not None:
        phi = phi + prior[table.given]
    if table.parametrisation == "softmax":
        return phi.softmax(-1)
    given = torch.eye(cases.C, dtype=phi.dtype)[table.given]
    weights = phi.exp() * (1 - given)
    return MASS * given + (1 - MASS) * weights / weights.sum(-1, keepdim=True)


def batch_of(number: int, mixed: bool) -> Batch:
    batch = cases.batch_of(number)
    if not mixed:
        return batch
    partners = torch.roll(batch.indices, 2)
    share = torch.tensor([0.3, 0.75, 0.5, 0.9, 1.0], dtype=torch.float64)
    return replace(batch, mix=Mix(partners, cases.given_labels()[partners], share, partners))


def reverse_divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(p || y) + .4 H(p), written again from the definition: [B]."""
    p = logits.softmax(-1)
    return (p * (p / target).log()).sum(-1) - 0.4 * (p * p.log()).sum(-1)


def by_double_backward(
    training: Training, batch: Batch, judge: Batch, inner: Callable[[Tensor, Tensor], Tensor] = soft_cross_entropy
) -> tuple[Tensor, Tensor | None]:
    """dL_meta/dphi and dL_meta/dprior; `inner` is what the network is trained by."""
    model, table = copy.deepcopy(training.model), training.rule.table
    phi = table.phi.clone().requires_grad_()
    prior = None if table.prior is None else table.prior.clone().requires_grad_()
    labels = labels_of(table, phi, prior)
    target = labels[table.rows(batch.indices, batch.given)]
    if batch.mix is not None:
        share = batch.mix.share.unsqueeze(1)
        target = share * target + (1 - share) * labels[table.rows(batch.mix.indices, batch.mix.given)]
    theta = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    with hygiene.untracked(model):
        loss = inner(functional_call(model, theta, (batch.images,)), target).mean()
        g = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        after = {name: t - LR * d for (name, t), d in zip(theta.items(), g, strict=True)}
        judged = cross_entropy(functional_call(model, after, (judge.images,)), judge.given).mean()
    return (
        torch.autograd.grad(judged, phi, retain_graph=True)[0],
        None if prior is None else torch.autograd.grad(judged, prior)[0],
    )


def per_image(gradient: Tensor, batch: Batch) -> Tensor:
    """A class row's gradient divided by its images, each as much as its share."""
    own = torch.ones(cases.B, dtype=torch.float64) if batch.mix is None else batch.mix.share
    count = torch.zeros(cases.C, dtype=torch.float64).index_add_(0, batch.given, own)
    if batch.mix is not None:
        count.index_add_(0, batch.mix.given, 1 - own)
    return gradient / torch.where(count > 0, count, 1).unsqueeze(1)


def error_of_step(
    training: Training, batch: Batch, estimator: str, inner: Callable[[Tensor, Tensor], Tensor] = soft_cross_entropy
) -> float:
    """The larger relative error of what a whole step does to rows and prior; label steps are 1 and .5."""
    judge, table = cases.batch_of(1000, cases.M), training.rule.table
    of_phi, of_prior = by_double_backward(training, batch, judge, inner)
    before = table.phi.clone(), None if table.prior is None else table.prior.clone()
    cases.whole_step(training, ESTIMATORS[estimator], "held-out")(batch, 0, learn=True)
    scale = cases.B / LR
    expected = per_image(of_phi, batch) if table.kind == "class" else of_phi
    assert expected.norm() > 1e-4
    errors = [cases.relative(before[0] - table.phi, expected * scale)]
    if of_prior is not None:
        errors.append(cases.relative(before[1] - table.prior, 0.5 * per_image(of_prior, batch) * scale))
    return float(max(errors))


@pytest.mark.parametrize("estimator", ["forward-mode", "unrolled"])
@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_and_prior_move_down_the_meta_loss(form: str, mixed: bool, estimator: str) -> None:
    model, _ = cases.build("conv-batchnorm", "plain")
    rule = Learned(table_of(form), step=1.0, prior_step=0.5)
    training = Training(model, torch.optim.SGD(model.parameters(), lr=LR), rule, seed=5)
    batch = batch_of(0, mixed)
    assert error_of_step(training, batch, estimator) < 1e-10


@pytest.mark.parametrize("estimator", ["forward-mode", "central", "one-sided"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_move_down_the_meta_loss_of_the_reverse_divergence(form: str, estimator: str) -> None:
    """The estimators differentiate the cross-entropy; p / y makes it the divergence that the network is trained by."""
    model, _ = cases.build("conv-batchnorm", "plain")
    rule = Learned(table_of(form), step=1.0, prior_step=0.5, divergence="reverse", answer_entropy=0.4)
    training = Training(model, torch.optim.SGD(model.parameters(), lr=LR), rule, seed=5)
    batch = batch_of(0, False)
    loss, _ = rule.loss(logits := training.forward(batch, 0).detach(), batch.indices, batch.given)
    labels = labels_of(rule.table, rule.table.phi, rule.table.prior)[rule.table.rows(batch.indices, batch.given)]
    torch.testing.assert_close(loss, reverse_divergence(logits, labels), rtol=1e-12, atol=1e-12)
    model.load_state_dict(cases.build("conv-batchnorm", "plain")[0].state_dict())
    most = {"forward-mode": 1e-10, "central": 1e-5, "one-sided": 1e-2}[estimator]
    assert error_of_step(training, batch, estimator, reverse_divergence) < most


def test_the_answers_entropy_is_added_to_the_cross_entropy_too() -> None:
    """It has no labels in it, so that what judges them is as before."""
    moved = []
    for weight in (0.0, 0.3):
        rule = Learned(table_of("instance"), step=1.0, answer_entropy=weight)
        batch = batch_of(0, False)
        logits = cases.batch(3, cases.B)[0].flatten(1)[:, : cases.C].double()
        p = logits.softmax(-1)
        loss, labels = rule.loss(logits, batch.indices, batch.given)
        expected = soft_cross_entropy(logits, labels) - weight * (p * p.log()).sum(-1)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        moved.append(rule.through_loss(p, labels, p.log()))
    assert torch.equal(*moved)

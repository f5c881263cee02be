"""Labels learned from mixed images: the label of a mixed image is made of two rows, and both are told their part."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from distill.bilevel import hygiene
from distill.bilevel.estimators import ESTIMATORS
from distill.bilevel.step import Training
from distill.data.batches import Batch, Mix
from distill.losses.soft import cross_entropy, soft_cross_entropy
from tests.bilevel import cases

LR = 0.1
EXACT = ["forward-mode", "unrolled"]


def mixed_batch(number: int) -> Batch:
    """Two entries are one image, one image is another's partner, one is mixed with itself, one not mixed at all."""
    batch = cases.batch_of(number)
    partners = torch.roll(batch.indices, 2)
    partners[0] = batch.indices[0]
    share = torch.tensor([0.3, 0.75, 0.5, 0.9, 1.0], dtype=torch.float64)
    return replace(batch, mix=Mix(partners, cases.given_labels()[partners], share, partners))


def training_of(kind: str, parametrisation: str = "softmax") -> Training:
    model, _ = cases.build("conv-batchnorm", "plain")
    rule = cases.learned(kind, 1.0, parametrisation)
    return Training(model, torch.optim.SGD(model.parameters(), lr=LR), rule, seed=5)


def given_loss(logits: Tensor, batch: Batch) -> Tensor:
    """By a target of probabilities, [B, C], as torch's cross-entropy takes it."""
    return torch.nn.functional.cross_entropy(logits, mixed(torch.eye(cases.C).double(), batch, batch.given, "class"))


def mixed(labels: Tensor, batch: Batch, given: Tensor, kind: str) -> Tensor:
    """Rows of a table of labels [R, C], mixed in a batch's shares, [B, C]."""
    own, partner = (given, batch.mix.given) if kind == "class" else (batch.indices, batch.mix.indices)
    share = batch.mix.share.unsqueeze(1)
    return share * labels[own] + (1 - share) * labels[partner]


def gradient_in_phi(training: Training, batch: Batch, meta: Batch, *, meta_is_mixed: bool) -> Tensor:
    """dL_meta/dphi [R, C] by plain double backward through the whole step."""
    model = copy.deepcopy(training.model)
    table = training.rule.table
    phi = table.phi.clone().requires_grad_()
    labels = phi.softmax(-1) if table.parametrisation == "softmax" else phi
    theta = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    with hygiene.untracked(model):
        logits = functional_call(model, theta, (batch.images,))
        loss = soft_cross_entropy(logits, mixed(labels, batch, batch.given, table.kind)).mean()
        g = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        after = {name: t - LR * d for (name, t), d in zip(theta.items(), g, strict=True)}
        meta_logits = functional_call(model, after, (meta.images,))
        judged = given_loss(meta_logits, meta) if meta_is_mixed else cross_entropy(meta_logits, meta.given).mean()
    (gradient,) = torch.autograd.grad(judged, phi)
    return gradient


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("meta", ["next-batch", "held-out"])
@pytest.mark.parametrize("kind", ["instance", "class"])
def test_both_rows_move_by_their_part_of_the_derivative(kind: str, meta: str, name: str) -> None:
    training = training_of(kind)
    batch = mixed_batch(0)
    judge = mixed_batch(1) if meta == "next-batch" else cases.batch_of(1000, cases.M)
    expected = gradient_in_phi(training, batch, judge, meta_is_mixed=meta == "next-batch") * len(batch.given) / LR
    if kind == "class":  # the mean over the images, each as much as its share
        shares = torch.zeros(cases.C).double().index_add_(0, batch.given, batch.mix.share)
        shares.index_add_(0, batch.mix.given, 1 - batch.mix.share)
        expected = expected / torch.where(shares > 0, shares, 1).unsqueeze(1)
    before = training.rule.table.phi.clone()
    step = cases.whole_step(training, ESTIMATORS[name], meta)
    for number in range(2 if meta == "next-batch" else 1):
        step(mixed_batch(number), number, learn=number == 0)
    moved = before - training.rule.table.phi
    assert expected.norm() > 1e-3
    assert cases.relative(moved, expected) < 1e-10
    untouched = ~torch.isin(torch.arange(len(moved)), torch.cat([batch.indices, batch.mix.indices]))
    assert kind == "class" or not moved[untouched].any()


@pytest.mark.parametrize("parametrisation", ["softmax", "projected"])
@pytest.mark.parametrize("kind", ["instance", "class"])
def test_images_mixed_with_themselves_are_not_mixed(kind: str, parametrisation: str) -> None:
    def alone(number: int) -> Batch:
        batch = cases.batch_of(number)
        share = torch.linspace(0, 1, len(batch.given)).double()
        return replace(batch, mix=Mix(batch.indices, batch.given, share, batch.rows))

    rows = []
    for batches in (cases.batch_of, alone):
        training = training_of(kind, parametrisation)
        step = cases.whole_step(training, ESTIMATORS["forward-mode"], "next-batch")
        for number in range(4):
            step(batches(number), number, learn=True)
        rows.append(training.rule.table.phi)
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-9, atol=1e-9)


def test_a_mixed_batch_that_waits_outlives_an_interruption() -> None:
    ends = []
    for interrupted in (False, True):
        training = training_of("instance")
        step = cases.whole_step(training, ESTIMATORS["one-sided"], "next-batch")
        step(mixed_batch(0), 0, learn=True)
        if interrupted:
            state = copy.deepcopy(step.state_dict())
            step = cases.whole_step(training, ESTIMATORS["one-sided"], "next-batch")
            step.load_state_dict(state)
        step(mixed_batch(1), 1, learn=True)
        ends.append(training.rule.table.phi.clone())
    assert torch.equal(*ends)


@pytest.mark.parametrize("kind", ["instance", "class"])
def test_labels_of_no_share_stay(kind: str) -> None:
    """Mixup with a small alpha draws shares of 0; every image of a class may have one."""
    rule = cases.learned(kind, 1.0)
    rule.table.phi = rule.table.phi.float()
    before = rule.table.phi.clone()
    indices = torch.arange(8)
    given = torch.tensor([0] * 4 + [1] * 4)
    labels = rule.labels(indices, given)
    gradient = torch.randn(8, cases.C, generator=torch.Generator().manual_seed(0))
    rule.learn(indices, given, labels, gradient, scale=1.0, shares=torch.tensor([0.0] * 4 + [1.0] * 4))
    moved = (rule.table.phi != before).any(-1)
    assert rule.table.phi.isfinite().all()
    assert not moved[:4].any() if kind == "instance" else not moved[0]
    assert moved[4:8].all() if kind == "instance" else moved[1]

"""When labels move and when they stay, how much memory that takes, and that they find planted label errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.labels.answers import Answers
from distill.labels.history import History
from distill.labels.phases import Phases
from distill.labels.predicted import SMALLEST_LEFT, Elr, Joint, Pencil, Predicted
from distill.labels.tables import instance_table
from distill.losses.soft import cross_entropy
from tests.labels.baselines import EPOCHS, predicted
from tests.labels.cases import CPU, GIVEN, C, N, images, noise

JOINT: dict[str, Any] = {"balance": 1.2, "entropy": 0.8, "window": 2}
PENCIL: dict[str, Any] = {"step": 0.5, "compatibility": 0.3, "entropy": 0.4, "mass": 0.9}
ALL = list(range(N))


def epochs(rule: Predicted) -> list[Tensor]:
    """The labels before the first epoch and after each, all images being answered in all."""
    seen = [rule.labels().clone()]
    for epoch in range(1, EPOCHS + 1):
        rule.loss(noise(epoch, N, C), *images(*ALL))
        rule.end_epoch(epoch, EPOCHS)
        seen.append(rule.labels().clone())
    return seen


@pytest.mark.parametrize("freeze", [0, 1, 3])
@pytest.mark.parametrize(("rule", "own"), [(Joint, JOINT), (Pencil, PENCIL)])
@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_labels_move_between_warm_up_and_freeze(
    rule: type[Predicted], own: dict[str, Any], warmup: int, freeze: int
) -> None:
    seen = epochs(predicted(rule, warmup=warmup, freeze=freeze, **own))
    moved = [e for e in range(1, EPOCHS + 1) if not torch.equal(seen[e], seen[e - 1])]
    # Joint's move after an epoch, the warm-up's last one included; PENCIL's in one.
    first = max(warmup, 1) if rule is Joint else warmup + 1
    assert moved == list(range(first, EPOCHS - freeze + 1))


def test_joint_s_labels_are_the_mean_of_the_last_answers() -> None:
    seen = epochs(predicted(Joint, warmup=2, freeze=1, **JOINT))
    p = [noise(epoch, N, C).softmax(-1) for epoch in range(EPOCHS + 1)]
    assert torch.equal(seen[1], torch.eye(C)[GIVEN])
    for epoch in range(2, 6):
        torch.testing.assert_close(seen[epoch], (p[epoch - 1] + p[epoch]) / 2)
    assert torch.equal(seen[6], seen[5])


def test_joint_s_loss_is_that_of_its_phase() -> None:
    rule = predicted(Joint, warmup=1, freeze=1, **JOINT)
    log_p = noise(0, N, C).log_softmax(-1)
    p = log_p.exp()
    prior = torch.bincount(GIVEN) / N
    regularisers = 1.2 * (prior * (prior / p.mean(0)).log()).sum() - 0.8 * (p * log_p).sum(-1)
    for epoch in range(1, EPOCHS + 1):
        losses, labels = rule.loss(noise(0, N, C), *images(*ALL))
        own = (torch.special.xlogy(labels, labels) - labels * log_p).sum(-1)
        torch.testing.assert_close(losses, own if epoch == EPOCHS else own + regularisers)
        rule.end_epoch(epoch, EPOCHS)


def test_pencil_s_loss_is_that_of_its_phase() -> None:
    rule = predicted(Pencil, warmup=2, freeze=2, **PENCIL)
    logits = noise(0, N, C)
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    for epoch in range(1, EPOCHS + 1):
        expected_labels = torch.eye(C)[GIVEN] if epoch <= 2 else rule.labels().clone()  # before they move
        losses, labels = rule.loss(logits, *images(*ALL))
        torch.testing.assert_close(labels, expected_labels)
        if epoch <= 2:
            torch.testing.assert_close(losses, cross_entropy(logits, GIVEN))
        else:
            own = (p * (log_p - labels.log())).sum(-1)
            torch.testing.assert_close(losses, own - (0.4 * (p * log_p).sum(-1) if epoch <= 4 else 0))
        rule.end_epoch(epoch, EPOCHS)


def test_where_pencil_s_labels_rest() -> None:
    """y = (p + compatibility onehot) / (1 + compatibility): at 1 even a sure answer only draws level."""
    logits = torch.tensor([[0.0, 30.0, 0.0, 0.0]])  # the given label is 0
    for compatibility, expected in ((0.0, 1.0), (0.5, 2 / 3), (1.0, 0.5)):
        rule = predicted(Pencil, **{**PENCIL, "compatibility": compatibility})
        for _ in range(400):
            rule.loss(logits, *images(0))
        assert rule.labels()[0, 1] == pytest.approx(expected, abs=5e-3)


def test_repeats_of_an_image() -> None:
    """Joint: two answers. PENCIL: two gradients at the same label. ELR: one answer, their mean."""
    logits = noise(0, 2, C)
    p = logits.softmax(-1)
    joint = predicted(Joint, balance=0.0, entropy=0.0, window=2)
    joint.loss(logits, *images(3, 3))
    joint.end_epoch(1, EPOCHS)
    joint.loss(logits[:1], *images(3))
    joint.end_epoch(2, EPOCHS)
    torch.testing.assert_close(joint.labels()[3], (2 * p[0] + p[1]) / 3)

    pencil = predicted(Pencil, **PENCIL)
    phi, y = pencil.table.phi[3].clone(), pencil.labels()[3]
    pencil.loss(logits, *images(3, 3))
    pulled = 2 * y - p.sum(0) + 2 * 0.3 * (y - torch.eye(C)[GIVEN[3]])
    torch.testing.assert_close(pencil.table.phi[3], phi - 0.5 * pulled)

    elr = predicted(Elr, weight=3.0, decay=0.7)
    elr.loss(logits, *images(3, 3))
    torch.testing.assert_close(elr.table.phi[3], 0.3 * p.mean(0))


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_elr_holds_its_logarithm_and_has_no_gradient_below(decay: float) -> None:
    rule = predicted(Elr, weight=3.0, decay=decay)
    logits = torch.tensor([[0.0, 40.0, 0.0, 0.0]], requires_grad=True)
    for _ in range(60):
        losses, _ = rule.loss(logits, *images(0))
    assert rule.table.phi[0, 1] > 1 - 1e-6
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(losses, cross_entropy(logits, GIVEN[:1]) + 3 * torch.tensor(SMALLEST_LEFT).log())
    torch.testing.assert_close(gradient, logits.detach().softmax(-1) - torch.eye(C)[:1])


@pytest.mark.parametrize(
    ("window", "first", "last", "tables"),
    [(10, 70, 200, 10), (1, 0, 5, 1), (100, 0, 50, 1), (10, 0, 12, 3), (10, 9, 12, 3), (10, 20, 22, 3), (5, 4, 3, 0)],
)
def test_answers_take_no_more_tables_than_they_need(window: int, first: int, last: int, tables: int) -> None:
    answers = Answers(torch.zeros(N, C), window=window, first=first, last=last)
    assert answers.sums.shape == (tables, N, C)
    told: list[Tensor] = []
    for epoch in range(1, last + 3):
        p = noise(epoch, N, C, dtype=torch.float64).float()
        told.append(p)
        answers.add(epoch, torch.arange(N), p)
        means = answers.end_epoch(epoch, torch.zeros(N, C))
        assert (means is not None) == (max(first, 1) <= epoch <= last)
        if means is not None:
            torch.testing.assert_close(means[0], torch.stack(told[-window:]).mean(0), rtol=1e-4, atol=1e-5)


def test_averages_and_snapshots_are_kept() -> None:
    table = instance_table(torch.arange(N), GIVEN, C, 0.9, CPU)
    history = History(table.phi, average_epochs=2, snapshot_epochs=(2, 6))
    rule = Pencil(table, Phases(EPOCHS), history, step=0.5, compatibility=0.3, entropy=0.4)
    seen = []
    for epoch in range(1, EPOCHS + 1):
        rule.loss(noise(epoch, N, C), torch.arange(N), GIVEN)
        rule.end_epoch(epoch, EPOCHS)
        seen.append(rule.labels())
    kept = rule.kept()
    assert torch.equal(kept.labels, seen[-1])
    torch.testing.assert_close(kept.averaged, (seen[-1] + seen[-2]) / 2)
    assert torch.equal(kept.trajectory[2], seen[1].half())
    assert sorted(kept.trajectory) == [2, 6]


def test_labels_that_are_known_stay_and_change_nothing_for_the_others() -> None:
    plain = instance_table(torch.arange(N), GIVEN, C, 0.9, CPU)
    told = instance_table(torch.arange(N), GIVEN, C, 0.9, CPU, still=torch.tensor([1, 4]))
    start = plain.all_labels()
    others = torch.ones(N, dtype=torch.bool)
    others[[1, 4]] = False
    found = []
    for table in (plain, told):
        history = History(table.phi, average_epochs=1, snapshot_epochs=())
        rule = Pencil(table, Phases(EPOCHS), history, step=0.5, compatibility=0.3, entropy=0.4)
        for epoch in range(1, 4):
            losses, _ = rule.loss(noise(epoch, N, C), torch.arange(N), GIVEN)
            rule.end_epoch(epoch, EPOCHS)
        found.append((rule.labels(), losses))
    assert torch.equal(found[1][0][~others], start[~others])
    assert not torch.equal(found[0][0][~others], start[~others])
    assert torch.equal(found[1][0][others], found[0][0][others])
    assert torch.equal(found[1][1][others], found[0][1][others])


def planted(count: int = 400, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Clusters [count, 16], their true labels, and given labels of which 40 % are wrong."""
    draw = torch.Generator().manual_seed(0)
    true = torch.arange(count) % classes
    points = 1.2 * torch.randn(classes, 16, generator=draw)[true] + torch.randn(count, 16, generator=draw)
    wrong = torch.rand(count, generator=draw) < 0.4
    others = (true + torch.randint(1, classes, (count,), generator=draw)) % classes
    return points, true, torch.where(wrong, others, true)


TOY: dict[str, tuple[type[Predicted], int, dict[str, Any]]] = {
    "joint": (Joint, 5, {"balance": 1.2, "entropy": 0.8, "window": 5}),
    "pencil": (Pencil, 5, {"step": 0.5, "compatibility": 0.2, "entropy": 0.4}),
    "elr": (Elr, 0, {"weight": 3.0, "decay": 0.7}),
}


@pytest.mark.parametrize("name", TOY)
def test_planted_label_errors_are_corrected(name: str) -> None:
    kind, warmup, own = TOY[name]
    points, true, given = planted()
    count, total = len(given), 30
    assert float((given == true).float().mean()) < 0.65
    table = instance_table(torch.arange(count), given, 4, 0.99, CPU, "softmax" if kind is Pencil else "projected")
    rule = kind(table, Phases(total, warmup_epochs=warmup, freeze_epochs=5), History(table.phi), **own)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    order = torch.Generator().manual_seed(1)
    for epoch in range(1, total + 1):
        for rows in torch.randperm(count, generator=order).split(50):
            optimizer.zero_grad()
            rule.loss(net(points[rows]), rows, given[rows])[0].mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        rule.end_epoch(epoch, total)
    found = rule.kept().argmax
    wrong = given != true
    assert float((found[wrong] == true[wrong]).float().mean()) > 0.85
    assert float((found[~wrong] == true[~wrong]).float().mean()) > 0.95

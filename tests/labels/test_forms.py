"""Forms of label rows, what else draws them, and how far a step goes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distill.errors import DataError
from distill.labels.learned import Learned
from distill.labels.optim import step_factor
from distill.labels.pulls import Pulls
from distill.labels.tables import class_table, instance_table
from tests.labels.cases import CPU, GIVEN, IMAGES, C, N, images, learn, learned, noise, table

DOUBLE = torch.float64


def with_prior(
    step: float = 1.0, prior_step: float = 0.5, pulls: Pulls | None = None, still: Tensor | None = None
) -> Learned:
    rows = instance_table(IMAGES, GIVEN, C, 0.7, CPU, with_prior=True, still=still)
    return Learned(
        replace(rows, phi=rows.phi.double(), prior=rows.prior.double()), step=step, prior_step=prior_step, pulls=pulls
    )


def softmax_rule(pulls: Pulls) -> Learned:
    rows = table("instance")
    return Learned(replace(rows, phi=rows.phi.double() + noise(3, N, C, dtype=DOUBLE)), step=1.0, pulls=pulls)


def test_a_fixed_mass_stays_whatever_is_learned() -> None:
    for kind in ("class", "instance"):
        rule = learned(kind, "fixed-mass", "sgd")
        start = rule.table.all_labels().clone()
        for number in range(4):
            learn(rule, [0, 2, 2, 5], noise(number, 4, C), scale=50.0)
        labels = rule.table.all_labels()
        torch.testing.assert_close(labels.gather(1, rule.table.given.unsqueeze(1)), torch.full((len(labels), 1), 0.7))
        torch.testing.assert_close(
            start, rule.table.all_labels().scatter(1, rule.table.given.unsqueeze(1), 0.7) * 0 + start
        )
        assert (labels - start).abs().max() > 0.05


def test_a_fixed_mass_needs_two_other_classes() -> None:
    with pytest.raises(DataError, match="found 2 classes, expected 3 or more") as caught:
        class_table(2, 0.7, CPU, "fixed-mass")
    assert 'settings = "trusted"' in str(caught.value.cure)  # by which word it may have come


def test_what_one_image_teaches_the_prior_reaches_all_images_of_its_class() -> None:
    rule = with_prior(step=0.0, prior_step=1.0)
    before = rule.table.all_labels()
    learn(rule, [1], noise(0, 1, C, dtype=DOUBLE))
    moved = (rule.table.all_labels() - before).abs().sum(-1) > 1e-9
    assert moved.tolist() == (GIVEN[1] == GIVEN).tolist()
    assert rule.kept().touched.tolist() == [False, True, *[False] * (N - 2)]


@pytest.mark.parametrize("pulls", [None, Pulls(answers=0.4)])
def test_a_label_that_is_known_stands_still_on_a_prior_and_teaches_it_nothing(pulls: Pulls | None) -> None:
    rule, without = with_prior(pulls=pulls, still=IMAGES[[0, 6]]), with_prior(pulls=pulls)
    start = rule.table.all_labels()
    gradient, answers = noise(0, 4, C, dtype=DOUBLE), noise(1, 4, C, dtype=DOUBLE).softmax(-1)
    known, unknown = [0, 1, 4, 5], [1, 4, 5]  # 0 and 4 are of one class
    at = images(*known)
    rule.learn(*at, rule.labels(*at), gradient, scale=2.0, answers=answers)
    at = images(*unknown)
    without.learn(*at, without.labels(*at), gradient[1:], scale=2.0, answers=answers[1:])
    torch.testing.assert_close(rule.table.prior, without.table.prior)
    assert rule.table.prior[0].abs().max() > 0
    found = rule.table.all_labels()
    assert torch.equal(found[[0, 6]], start[[0, 6]])
    assert torch.equal(rule.labels(*images(0, 6)), start[[0, 6]])
    torch.testing.assert_close(found[1:6], without.table.all_labels()[1:6])


def test_without_steps_of_its_prior_it_is_the_instance_rule() -> None:
    rule, plain = (
        with_prior(prior_step=0.0),
        Learned(replace(table("instance"), phi=table("instance").phi.double()), step=1.0),
    )
    for number in range(3):
        for each in (rule, plain):
            learn(each, [0, 3, 3], noise(number, 3, C, dtype=DOUBLE))
    assert torch.equal(rule.table.all_labels(), plain.table.all_labels())


def test_a_saved_prior_comes_back() -> None:
    rule, twin = with_prior(), with_prior()
    learn(rule, [0, 3, 3], noise(0, 3, C, dtype=DOUBLE))
    twin.load_state_dict(rule.state_dict())
    assert torch.equal(twin.table.prior, rule.table.prior)
    assert rule.table.prior.abs().max() > 0
    for each in (rule, twin):
        learn(each, [1, 4], noise(1, 2, C, dtype=DOUBLE))
    assert torch.equal(twin.table.all_labels(), rule.table.all_labels())


def test_a_prior_is_for_instance_rows_that_are_logits() -> None:
    with pytest.raises(DataError, match="expected instance rows that are logits"):
        instance_table(IMAGES, GIVEN, C, 0.7, CPU, "projected", with_prior=True)


WEIGHTS = [
    Pulls(start=0.3),
    Pulls(answers=0.4),
    Pulls(posterior=0.6),
    Pulls(entropy=0.2),
    Pulls(start=0.3, answers=0.4, posterior=0.6, entropy=0.2),
]


def loss_of_labels(y: Tensor, start: Tensor, answers: Tensor, pulls: Pulls) -> Tensor:
    """Written again: start KL(y_0 || y) + answers KL(p || y) + posterior KL(q || y) - entropy H(y), summed."""
    of_start = (start * (start / y).log()).sum()
    of_answers = (answers * (answers / y).log()).sum()
    entropy = -(y * y.log()).sum()
    q = (answers.log() + start.log()).softmax(-1)
    of_posterior = (q * (q / y).log()).sum()
    return (
        pulls.start * of_start + pulls.answers * of_answers + pulls.posterior * of_posterior - pulls.entropy * entropy
    )


@pytest.mark.parametrize("pulls", WEIGHTS, ids=repr)
def test_pulls_are_the_gradient_of_their_losses(pulls: Pulls) -> None:
    rule, rows = softmax_rule(pulls), [1, 4, 6]
    answers = noise(8, 3, C, dtype=DOUBLE).softmax(-1)
    start = torch.full((3, C), 0.1, dtype=DOUBLE).scatter_(1, GIVEN[rows].unsqueeze(1), 0.7)
    phi = rule.table.phi[rows].clone().requires_grad_()
    loss = loss_of_labels(phi.softmax(-1), start, answers, pulls)
    (expected,) = torch.autograd.grad(loss, phi)
    before, at = rule.table.phi.clone(), images(*rows)
    rule.learn(*at, rule.labels(*at), torch.zeros(3, C, dtype=DOUBLE), scale=1.0, answers=answers)
    torch.testing.assert_close((before - rule.table.phi)[rows], expected, rtol=1e-5, atol=1e-7)
    untouched = [row for row in range(N) if row not in rows]
    assert torch.equal(before[untouched], rule.table.phi[untouched])


def test_pulls_add_to_the_meta_gradient() -> None:
    gradient, answers, at = noise(0, 2, C, dtype=DOUBLE), noise(1, 2, C, dtype=DOUBLE).softmax(-1), images(0, 3)
    moved = []
    for pulls, part in ((Pulls(answers=0.4), 0.0), (Pulls(answers=0.4), 1.0), (Pulls(start=1e-12), 1.0)):
        rule = softmax_rule(pulls)
        before = rule.table.phi.clone()
        rule.learn(*at, rule.labels(*at), part * gradient, scale=2.0, answers=answers)
        moved.append(before - rule.table.phi)
    torch.testing.assert_close(moved[1], moved[0] + moved[2], rtol=1e-6, atol=1e-9)


def test_labels_pulled_towards_the_answers_arrive_there() -> None:
    rule, at = softmax_rule(Pulls(answers=1.0)), images(2)
    answers = torch.tensor([[0.7, 0.1, 0.15, 0.05]], dtype=DOUBLE)
    for _ in range(300):
        rule.learn(*at, rule.labels(*at), torch.zeros(1, C, dtype=DOUBLE), scale=1.0, answers=answers)
    torch.testing.assert_close(rule.labels(*at), answers, rtol=1e-3, atol=1e-3)


def test_pulls_stay_finite_where_labels_are_nearly_0() -> None:
    rows = table("instance")
    rows.phi[:, 0] = -200.0
    rule, at = Learned(rows, step=1.0, pulls=Pulls(0.3, 0.4, 0.2)), images(0, 1)
    rule.learn(*at, rule.labels(*at), torch.zeros(2, C), scale=1.0, answers=torch.eye(C)[:2])
    assert rule.table.phi.isfinite().all()


def test_projected_labels_have_no_pulls() -> None:
    with pytest.raises(DataError, match="whose KL has no bound"):
        Learned(table("instance", "projected"), step=1.0, pulls=Pulls(start=1.0))


def test_a_normalised_row_moves_by_its_step_and_one_without_a_gradient_stays() -> None:
    rule = learned("instance", "softmax", "normalised")
    before = rule.table.phi.clone()
    gradient = torch.cat([1e-3 * noise(0, 1, C), 1e3 * noise(1, 1, C), torch.zeros(1, C)])
    learn(rule, [0, 2, 5], gradient)
    moved = (rule.table.phi - before).norm(dim=-1)
    torch.testing.assert_close(moved[[0, 2]], torch.tensor([0.1, 0.1]))
    assert moved[5] == 0
    assert rule.optimizer.touched.tolist() == [True, False, True, False, False, True, False]


@pytest.mark.parametrize("optimizer", ["sgd", "normalised"])
def test_a_temperature_of_the_table_would_be_another_label_step(optimizer: str) -> None:
    """y = softmax(phi / T) moves as softmax(phi) does with step / T^2 (normalised rows: step / T), so there is none."""
    temperature, step = 3.0, 0.5
    tempered = table("instance").phi.double()
    rows = replace(table("instance"), phi=tempered / temperature)
    power = 2 if optimizer == "sgd" else 1
    rule = Learned(rows, step=step / temperature**power, optimizer=optimizer)
    for number in range(3):
        at, a = images(0, 3, 6), noise(number, 3, C, dtype=DOUBLE)
        phi = tempered[[0, 3, 6]].clone().requires_grad_()
        (g,) = torch.autograd.grad(((phi / temperature).softmax(-1) * a).sum(), phi)
        g = g if optimizer == "sgd" else g / g.norm(dim=-1, keepdim=True)
        tempered[[0, 3, 6]] -= step * g
        rule.learn(*at, rule.labels(*at), a, scale=1.0)
    torch.testing.assert_close(rule.table.all_labels(), (tempered / temperature).softmax(-1), rtol=1e-6, atol=1e-9)


def test_a_step_in_parts() -> None:
    assert [step_factor("constant", p) for p in (0.0, 0.5, 1.0)] == [1, 1, 1]
    assert [step_factor("linear", p) for p in (0.0, 0.25, 1.0)] == [1, 0.75, 0]
    assert [step_factor("cosine", p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])
    for optimizer in ("sgd", "momentum", "normalised", "adam"):
        rule, half = learned("instance", "softmax", optimizer), learned("instance", "softmax", optimizer)
        half.set_factor(0.5)
        for each in (rule, half):
            learn(each, [0], noise(0, 1, C))
        moved, in_half = (each.table.phi[0] - table("instance").phi[0] for each in (rule, half))
        torch.testing.assert_close(in_half, 0.5 * moved)
        still = rule.table.phi.clone()
        rule.set_factor(0.0)
        learn(rule, [0, 3], noise(1, 2, C))
        assert torch.equal(rule.table.phi, still)


def test_the_true_class_mass_is_where_labels_start() -> None:
    for form in ("softmax", "projected", "fixed-mass"):
        labels = table("instance", form).all_labels()
        assert math.isclose(float(labels[0, GIVEN[0]]), 0.7, rel_tol=1e-6)
        torch.testing.assert_close(labels.sum(-1), torch.ones(N))

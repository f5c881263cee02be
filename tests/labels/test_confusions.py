"""Learned likelihoods of given labels: counts as written again, the confusions that labels were drawn with, state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distill.errors import StoreError
from distill.labels.confusions import PRIOR, Confusions
from distill.labels.learned import Learned
from distill.labels.pulls import Pulls, posterior
from distill.seeding import generator
from tests.labels.cases import CPU, GIVEN, C, N, images, learn, noise, table

MASS = 0.7
SWAPPED = torch.tensor([[0.6, 0.4, 0.0, 0.0], [0.3, 0.7, 0.0, 0.0], [0.0, 0.0, 0.95, 0.05], [0.1, 0.1, 0.1, 0.7]])


def drawn(images: int, sure: float) -> tuple[Tensor, Tensor, Tensor]:
    """True classes, labels drawn by SWAPPED, and answers that give the true class `sure` in the mean."""
    draw = generator(0, "confusions")
    true = torch.randint(len(SWAPPED), (images,), generator=draw)
    given = torch.multinomial(SWAPPED[true], 1, generator=draw).squeeze(1)
    right = torch.rand(images, generator=draw) < sure
    guess = torch.where(right, true, torch.randint(len(SWAPPED), (images,), generator=draw))
    answers = torch.full((images, len(SWAPPED)), 0.05).scatter_(1, guess.unsqueeze(1), 0.85)
    return true, given, answers


def test_a_count_is_what_a_loop_counts() -> None:
    confusions = Confusions(C, MASS, CPU)
    start = confusions.matrix.clone()
    believed, given, counted = noise(0, N, C).softmax(-1), GIVEN, torch.arange(N) % 3 > 0
    confusions.count(believed, given, counted)
    expected = PRIOR * start.double()
    for image in range(N):
        for k in range(C):
            if counted[image]:
                expected[k, given[image]] += believed[image, k]
    confusions.end_epoch()
    expected /= expected.sum(1, keepdim=True)
    torch.testing.assert_close(confusions.matrix.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(confusions.likelihood(given)[4], expected[:, given[4]].float())
    assert not confusions.counts.any()


def test_it_starts_with_equal_errors_and_stays_where_nothing_was_seen() -> None:
    confusions = Confusions(C, MASS, CPU)
    torch.testing.assert_close(confusions.matrix.sum(1), torch.ones(C))
    before = confusions.matrix.clone()
    assert torch.equal(confusions.likelihood(GIVEN).gather(1, GIVEN.unsqueeze(1)), torch.full((N, 1), MASS))
    confusions.end_epoch()
    assert torch.equal(confusions.matrix, before)


def test_what_labels_were_drawn_with_is_found() -> None:
    true, given, answers = drawn(8000, sure=0.9)
    confusions = Confusions(4, 0.65, CPU)
    start = posterior(answers, confusions.likelihood(given)).argmax(1)
    for _ in range(30):
        confusions.count(posterior(answers, confusions.likelihood(given)), given)
        confusions.end_epoch()
    assert (confusions.matrix - SWAPPED).abs().max() < 0.08
    found = posterior(answers, confusions.likelihood(given)).argmax(1)
    assert (found != true).sum() < 0.75 * (start != true).sum()


def rule(still: Tensor | None = None) -> Learned:
    confusions = Confusions(C, MASS, CPU)
    rows = replace(table("instance"), still=still)
    return Learned(rows, step=1.0, pulls=Pulls(posterior=0.5), confusions=confusions)


def test_labels_are_pulled_to_the_posterior_of_what_is_known_of_them() -> None:
    learned, at = rule(), images(0, 3)
    learned.confusions.matrix.copy_(noise(1, C, C).softmax(-1))
    likelihood = learned.confusions.matrix[:, GIVEN[[0, 3]]].T
    answers = noise(2, 2, C).softmax(-1)
    y = learned.labels(*at)
    before = learned.table.phi.clone()
    learned.learn(*at, y, torch.zeros(2, C), scale=1.0, answers=answers)
    joint = answers * likelihood
    q = joint / joint.sum(1, keepdim=True)
    torch.testing.assert_close((before - learned.table.phi)[[0, 3]], 0.5 * (y - q), rtol=1e-4, atol=1e-6)
    expected = torch.zeros(C, C)
    for row, image in enumerate((0, 3)):
        expected[:, GIVEN[image]] += q[row]
    torch.testing.assert_close(learned.confusions.counts, expected)


def test_images_whose_labels_are_known_do_not_count() -> None:
    learned = rule(still=torch.arange(N) == 3)
    learned.learn(
        *images(0, 3), learned.labels(*images(0, 3)), torch.zeros(2, C), scale=1.0, answers=noise(2, 2, C).softmax(-1)
    )
    assert learned.confusions.counts.sum() == pytest.approx(1)


def test_the_state_comes_back() -> None:
    first, twin = rule(), rule()
    answers = noise(2, 2, C).softmax(-1)
    for each in (first, twin):
        each.learn(*images(0, 3), each.labels(*images(0, 3)), torch.zeros(2, C), scale=1.0, answers=answers)
        each.end_epoch(1, 3) if each is first else None
    twin.load_state_dict(first.state_dict())
    for each in (first, twin):
        each.learn(*images(1, 4), each.labels(*images(1, 4)), torch.zeros(2, C), scale=1.0, answers=answers)
    assert torch.equal(first.table.phi, twin.table.phi)
    assert torch.equal(first.confusions.matrix, twin.confusions.matrix)
    plain = Learned(table("instance"), step=1.0, pulls=Pulls(posterior=0.5))
    with pytest.raises(StoreError):
        rule().load_state_dict(plain.state_dict())


def test_without_answers_there_is_nothing_to_count() -> None:
    learned = rule()
    learn(learned, [0, 3], noise(0, 2, C))
    assert not learned.confusions.counts.any()

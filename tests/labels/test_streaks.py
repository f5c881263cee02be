"""Pulls that grow while an image's answers agree."""

from __future__ import annotations

import pytest
import torch

from distill.errors import DataError
from distill.labels.learned import Learned
from distill.labels.pulls import Pulls
from distill.labels.streaks import Streaks
from tests.labels.cases import CPU, C, N, images, noise, table


def test_times_in_a_row_are_those_of_a_slow_count() -> None:
    streaks, seen = Streaks(N, CPU), {row: [] for row in range(N)}
    generator = torch.Generator().manual_seed(0)
    for look in range(40):
        rows = torch.randperm(N, generator=generator)[:3]
        belief = noise(look, 3, C).mul(2).softmax(-1)
        found = streaks.count(rows, belief)
        for row, likeliest, times in zip(rows.tolist(), belief.argmax(-1).tolist(), found.tolist(), strict=True):
            seen[row].append(likeliest)
            backwards = seen[row][::-1]
            assert times == next((k for k, each in enumerate(backwards) if each != likeliest), len(backwards))


def rule(repeats: float, step: float = 1.0) -> Learned:
    pulls = Pulls(posterior=1.0, start=0.2, proximal=True, repeats=repeats)
    return Learned(table("instance"), step=step, pulls=pulls)


def answers_for(likeliest: int) -> torch.Tensor:
    """Sure enough that the given labels of two images do not change which class is the likeliest."""
    return torch.full((2, C), 0.02).index_fill_(1, torch.tensor([likeliest]), 0.94)


def test_a_pull_is_as_many_times_as_strong_as_its_answers_agreed() -> None:
    """Against rules whose posterior has that weight from the start: each step is theirs, from where this one stands."""
    at, learned = images(0, 3), rule(3.0)
    for likeliest, times in ((1, 1), (1, 2), (1, 3), (1, 3), (2, 1), (2, 2), (1, 1)):
        twin = Learned(table("instance"), step=1.0, pulls=Pulls(posterior=float(times), start=0.2, proximal=True))
        twin.table.phi.copy_(learned.table.phi)
        y, gradient = learned.labels(*at), noise(5, 2, C)
        for each in (learned, twin):
            each.learn(*at, y, gradient, scale=0.3, answers=answers_for(likeliest))
        torch.testing.assert_close(learned.table.phi, twin.table.phi, rtol=1e-5, atol=1e-6)


def test_where_answers_never_agree_nothing_grows() -> None:
    at, learned, plain = images(1), rule(100.0), rule(1.0)
    for look in range(6):
        answers = torch.full((1, C), 0.01).index_fill_(1, torch.tensor([look % C]), 0.97)
        for each in (learned, plain):
            each.learn(*at, each.labels(*at), torch.zeros(1, C), scale=1.0, answers=answers)
    torch.testing.assert_close(learned.table.phi, plain.table.phi)


def test_state_comes_back() -> None:
    at, answers, one, other = images(0, 3), noise(2, 2, C).softmax(-1), rule(5.0), rule(5.0)
    for _ in range(3):
        one.learn(*at, one.labels(*at), torch.zeros(2, C), scale=1.0, answers=answers)
    other.load_state_dict(one.state_dict())
    for each in (one, other):
        each.learn(*at, each.labels(*at), torch.zeros(2, C), scale=1.0, answers=answers)
    assert torch.equal(one.table.phi, other.table.phi)


def test_without_proximal_steps_nothing_may_grow() -> None:
    with pytest.raises(DataError, match="repeats, expected proximal pulls"):
        Learned(table("instance"), step=1.0, pulls=Pulls(posterior=1.0, repeats=2.0))


def test_labels_of_a_class_do_not_grow() -> None:
    at = images(0, 4)  # both are given as class 0
    plain, growing = (
        Learned(table("class"), step=1.0, pulls=Pulls(posterior=1.0, proximal=True, repeats=repeats))
        for repeats in (1.0, 5.0)
    )
    for _ in range(3):
        for each in (plain, growing):
            each.learn(*at, each.labels(*at), torch.zeros(2, C), scale=1.0, answers=answers_for(2))
    assert torch.equal(plain.table.phi, growing.table.phi)

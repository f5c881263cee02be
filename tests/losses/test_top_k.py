"""Which losses a top-k store can serve at T = 1 is measured: how far its made-up tail turns each one's gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from distill.losses import decoupled, logit, relational, transformed
from distill.recipe.losses import CATALOGUE, LossName
from distill.store.formats import topk

LOSSES: dict[LossName, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kd": lambda s, t, y: logit.kd(s, t, 1.0),
    "ttm": lambda s, t, y: transformed.ttm(s, t, temperature=1.0),
    "wttm": lambda s, t, y: transformed.wttm(s, t, temperature=1.0),
    "reverse-kd": lambda s, t, y: logit.reverse_kd(s, t, 1.0),
    "jsd": lambda s, t, y: logit.jsd(s, t, 1.0),
    "dkd": partial(decoupled.dkd, temperature=1.0),
    "nkd": decoupled.nkd,
    "dist": lambda s, t, y: relational.dist(s, t, temperature=1.0),
}
SERVED = ("kd", "ttm", "wttm")
ROWS = 64


def gradient(loss: Callable[[Tensor, Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
    student = student.double().requires_grad_()
    loss(student, teacher.double(), y).mean().backward()
    assert student.grad is not None
    return student.grad


def error(name: LossName, classes: int, k: int) -> float:
    """|gradient by what the store gives back - gradient by the logits| / |the latter|."""
    draw = torch.Generator().manual_seed(classes)
    teacher = 2 * torch.randn(ROWS, classes, generator=draw)
    targets = teacher.argmax(1)
    targets[: ROWS // 4] = torch.randint(classes, (ROWS // 4,), generator=draw)
    teacher[torch.arange(ROWS), targets] += 4
    student = torch.randn(ROWS, classes, generator=draw) + teacher / 2
    found = topk.decode(topk.encode(teacher, k), classes)
    whole, kept = (gradient(LOSSES[name], student, logits, targets) for logits in (teacher, found))
    return float((whole - kept).norm() / whole.norm())


@pytest.mark.parametrize(("classes", "k"), [(1000, 10), (1000, 50), (100, 10)])
def test_the_losses_that_are_allowed_are_those_whose_gradient_stays(classes: int, k: int) -> None:
    errors = {name: error(name, classes, k) for name in LOSSES}
    served = max(errors[name] for name in SERVED)
    assert served < 0.05, errors
    assert min(found for name, found in errors.items() if name not in SERVED) > 1.5 * served, errors


def test_the_catalogue_says_the_same() -> None:
    assert {name for name, entry in CATALOGUE.items() if entry.tail == "hot"} == set(SERVED)
    assert all(CATALOGUE[name].tail == "always" for name in LOSSES if name not in SERVED)

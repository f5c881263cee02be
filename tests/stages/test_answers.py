"""Measures of a teacher's answers: against sums over pairs that are written out, and what must not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.stages import answers
from distill.stages.answers import measured
from distill.stages.export import export_teacher
from distill.stages.finished import STORE
from distill.stages.pipeline import run_pipeline
from distill.store.logits import LogitStore


def some(classes: int = 4, rows: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, given labels of which some are wrong, and true ones; the last class has no image."""
    source = torch.Generator().manual_seed(seed)
    true = torch.arange(rows) % (classes - 1)
    given = torch.where(torch.rand(rows, generator=source) < 0.3, (true + 1) % classes, true)
    return 3 * torch.randn(rows, classes, generator=source) + 2 * torch.eye(classes)[true], given, true


def slow(logits: Tensor, given: Tensor, true: Tensor) -> dict[str, float]:
    """Each measure from its definition, a pair of images at a time."""
    z, g, t = (each.double().numpy() for each in (logits, given, true))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    centred = z - z.mean(1, keepdims=True)
    cosine = lambda a, b: 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))  # noqa: E731
    present = sorted(set(t))
    between = {
        (a, b): np.mean(
            [cosine(centred[m], centred[n]) for m in np.flatnonzero(t == a) for n in np.flatnonzero(t == b)]
        )
        for a in present
        for b in present
    }
    within, overall = np.mean([between[a, a] for a in present]), np.mean(list(between.values()))
    wrong = g != t
    return {
        "answers_entropy": float(np.mean(-(p * np.log(p)).sum(1))),
        "answers_right": float(np.mean(p.argmax(1) == t)),
        "answers_separation": float(1 - within / overall),
        "answers_repeated": float(np.mean(p.argmax(1)[wrong] == g[wrong])),
    }


@pytest.mark.parametrize("seed", range(3))
def test_measures_are_those_of_their_definitions_however_they_are_batched(seed: int) -> None:
    logits, given, true = some(seed=seed)
    parts = zip(logits.split(7), given.split(7), true.split(7), strict=True)
    expected = slow(logits, given, true)
    for found in (measured([(logits, given, true)], 4), measured(parts, 4)):
        assert found == pytest.approx(expected, abs=1e-12)


def test_what_softmax_does_not_see_changes_nothing() -> None:
    logits, given, true = some()
    moved = logits + torch.arange(len(logits)).unsqueeze(1)
    assert measured([(moved, given, true)], 4) == pytest.approx(measured([(logits, given, true)], 4), abs=1e-5)


def test_sure_answers_are_far_apart_and_have_no_entropy() -> None:
    true = torch.arange(12) % 3
    found = measured([(1e6 * torch.eye(3)[true], true, true)], 3)
    assert found == pytest.approx({"answers_entropy": 0.0, "answers_right": 1.0, "answers_separation": 1.0})


def test_answers_that_are_all_alike_have_no_separation() -> None:
    true = torch.arange(12) % 3
    found = measured([(torch.zeros(12, 3), true, true)], 3)
    assert found["answers_entropy"] == pytest.approx(math.log(3))
    assert found["answers_separation"] == pytest.approx(0.0)
    assert "answers_separation" not in measured([(torch.eye(3)[[0] * 12], true, true)], 3)


def test_every_export_is_measured_once(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny("data.noise.kind=symmetric", "data.noise.rate=0.5")
    run, _ = run_pipeline(recipe, lambda event: None)
    before = dict(run.metrics("export"))
    names = {"answers_entropy", "answers_right", "answers_repeated", "answers_separation"}
    assert names <= set(before)
    store = LogitStore.open(run.folder / STORE)
    logits = store.rows(store.indices, torch.zeros_like(store.indices))
    log_p = torch.log_softmax(logits.double(), dim=1)
    assert before["answers_entropy"] == pytest.approx(float(-(log_p.exp() * log_p).sum(1).mean()))

    monkeypatch.setattr(answers, "measured", lambda *given: pytest.fail("measured again"))
    export_teacher(run, recipe, lambda event: None)


def test_of_mixed_images_no_answer_is_counted_right(tiny) -> None:
    run, _ = run_pipeline(tiny("views.mixup=0.4", "teacher.labels.rule=onehot"), lambda event: None)
    assert {name for name in run.metrics("export") if name.startswith("answers")} == {"answers_entropy"}

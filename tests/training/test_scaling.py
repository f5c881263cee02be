"""Temperature scaling against the condition that its optimum fulfils, and against a search over many temperatures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distill.data.loader import Batch
from distill.training.evaluate import evaluate
from distill.training.scaling import BOUNDS, LEAST_WRONG, fit_temperature, scaled_scores


def drawn(seed: int, count: int = 400, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=source, dtype=torch.float64)
    return logits, torch.multinomial(torch.softmax(logits / 2, 1), 1, generator=source).squeeze(1)


def nll(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """Slow and obvious: -log of each row's probability, one row at a time, in float64."""
    total = 0.0
    for row, target in zip(logits.double().numpy() / temperature, targets.tolist(), strict=True):
        total -= row[target] - row.max() - math.log(np.exp(row - row.max()).sum())
    return total / len(targets)


@settings(max_examples=15, deadline=None)
@example(seed=3590, scale=10.0, count=20)  # all right, and so the surer the better: the least is at the bound
@given(seed=st.integers(0, 10**6), scale=st.floats(0.3, 30), count=st.integers(20, 150))
def test_no_other_temperature_is_better(seed: int, scale: float, count: int) -> None:
    logits, targets = drawn(seed, count, scale=scale)
    found = fit_temperature(logits, targets)
    least = nll(logits, targets, found)
    for other in np.geomspace(*BOUNDS, 15):
        assert least <= nll(logits, targets, float(other)) * (1 + 1e-5)


def test_at_the_optimum_the_expected_logit_is_the_target_s() -> None:
    """d NLL / d(1/T) = E_p[z] - z_y, on average over the rows, is zero (the paper's section 4.2 by calculus)."""
    logits, targets = drawn(3, 2000)
    temperature = fit_temperature(logits, targets)
    expected = (torch.softmax(logits / temperature, 1) * logits).sum(1).mean()
    taken = logits.gather(1, targets.unsqueeze(1)).mean()
    assert float(expected) == pytest.approx(float(taken), abs=1e-4)
    assert temperature == pytest.approx(2.0, rel=0.1)  # that the targets were drawn at


def test_logits_times_a_number_have_that_number_times_the_temperature() -> None:
    logits, targets = drawn(4)
    assert fit_temperature(3 * logits, targets) == pytest.approx(3 * fit_temperature(logits, targets), rel=1e-4)


def test_rows_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = drawn(5)
    whole = fit_temperature(logits, targets)
    monkeypatch.setattr("distill.training.scaling._ROWS", 7)
    assert fit_temperature(logits, targets) == pytest.approx(whole, rel=1e-4)


def test_where_hardly_a_row_is_wrong_nothing_is_scaled() -> None:
    """One wrong image of sixty would make a temperature of .05, and none a temperature of 0."""
    logits, _ = drawn(6)
    logits = logits.float()
    for wrong in (0, LEAST_WRONG - 1, LEAST_WRONG):
        targets = logits.argmax(1)
        targets[:wrong] = (targets[:wrong] + 1) % 5
        found = scaled_scores(nn.Flatten(), batches(logits, 0, 100), targets, batches(logits, 0, 100), targets)
        assert bool(found) == (wrong == LEAST_WRONG)
    assert fit_temperature(logits, logits.argmax(1)) == pytest.approx(BOUNDS[0], rel=1e-3)


def test_answers_that_say_nothing_are_made_as_unsure_as_is_allowed() -> None:
    logits, _ = drawn(7, scale=5.0)
    targets = torch.randint(5, (400,), generator=torch.Generator().manual_seed(8))
    assert fit_temperature(logits, targets) > 10
    assert fit_temperature(logits, logits.argmin(1)) == pytest.approx(BOUNDS[1], rel=1e-3)


def batches(logits: Tensor, first: int, size: int) -> list[Batch]:
    """Images [B, 1, 1, C] whose network is nn.Flatten."""
    rows = torch.arange(first, first + len(logits))
    return [
        Batch(
            indices=r,
            images=part.view(len(part), 1, 1, -1),
            rows=r,
            given=torch.zeros_like(r),
            view=torch.zeros_like(r),
        )
        for part, r in zip(logits.split(size), rows.split(size), strict=True)
    ]


def test_the_guide_says_where_the_search_ends() -> None:
    guide = Path(__file__).parents[2] / "docs/guide/comparing.md"
    assert f"from {BOUNDS[0]:g} to {BOUNDS[1]:g}" in " ".join(guide.read_text().split())


def test_the_temperature_is_of_validation_and_the_scores_of_test() -> None:
    logits, targets = drawn(9, 600)
    validation, test = logits[:250].float(), logits[250:].float()
    model = nn.Flatten().train()
    chosen = torch.cat([targets[:250], torch.zeros(350, dtype=torch.int64)])  # what it must not read is wrong
    reported = torch.cat([torch.zeros(250, dtype=torch.int64), targets[250:]])
    found = scaled_scores(model, batches(validation, 0, 60), chosen, batches(test, 250, 90), reported)
    temperature = fit_temperature(validation, targets[:250])
    assert found["scaling_temperature"] == pytest.approx(temperature, rel=1e-6)
    assert found["test_nll_scaled"] == pytest.approx(nll(test, targets[250:], temperature), rel=1e-6)
    plain = evaluate(model, batches(test / temperature, 250, 350), reported)
    assert found["test_ece_scaled"] == pytest.approx(plain.ece, rel=1e-5)
    assert model.training


def test_without_test_images_there_is_the_temperature_alone() -> None:
    logits, targets = drawn(10)
    assert set(scaled_scores(nn.Flatten(), batches(logits, 0, 100), targets, [], targets)) == {"scaling_temperature"}

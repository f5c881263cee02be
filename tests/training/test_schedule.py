"""timm's traps, closed: where milestones fall, what is decayed, what 'sgd' is."""

from __future__ import annotations

import math

import pytest
import torch
from timm.optim import list_optimizers
from torch import nn

from distill.errors import RecipeError
from distill.recipe.schema import OptimizerRecipe
from distill.training.schedule import build_optimizer, build_schedule


def rates(recipe: OptimizerRecipe, epochs: int, steps: int) -> list[float]:
    optimizer = build_optimizer(nn.Linear(2, 2), recipe, "teacher.optimizer")
    schedule = build_schedule(optimizer, recipe, epochs=epochs, steps=steps)
    found = []
    for number in range(epochs * steps):
        schedule.step_update(number)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_milestones_fall_where_they_are_written() -> None:
    found = rates(OptimizerRecipe(lr=1.0, schedule="multistep", milestones=(2, 4), gamma=0.1), epochs=5, steps=3)
    assert found == pytest.approx([1.0] * 6 + [0.1] * 6 + [0.01] * 3)


def test_cosine_goes_from_peak_to_the_end() -> None:
    found = rates(OptimizerRecipe(lr=1.0, schedule="cosine", min_lr=0.2), epochs=4, steps=5)
    assert found == pytest.approx([0.2 + 0.4 * (1 + math.cos(math.pi * t / 20)) for t in range(20)])


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_warm_up_is_linear_and_never_zero(schedule: str) -> None:
    found = rates(OptimizerRecipe(lr=1.0, schedule=schedule, warmup_epochs=2), epochs=4, steps=2)
    assert found[0] > 0
    assert found[:4] == sorted(found[:4])
    assert found[4] == pytest.approx(1.0)


def test_a_schedule_forgets_nothing_when_it_starts_in_the_middle() -> None:
    recipe = OptimizerRecipe(lr=1.0, schedule="cosine", warmup_epochs=1)
    whole = rates(recipe, epochs=3, steps=4)
    optimizer = build_optimizer(nn.Linear(2, 2), recipe, "x")
    schedule = build_schedule(optimizer, recipe, epochs=3, steps=4)
    schedule.step_update(7)
    assert optimizer.param_groups[0]["lr"] == whole[7]


def test_momentum_is_plain_and_sgd_is_nesterov() -> None:
    for name, nesterov in (("momentum", False), ("sgd", True)):
        optimizer = build_optimizer(nn.Linear(2, 2), OptimizerRecipe(name=name, momentum=0.7), "x")
        assert type(optimizer) is torch.optim.SGD
        assert optimizer.param_groups[0]["nesterov"] is nesterov
        assert optimizer.param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize(("everything", "groups"), [(True, 1), (False, 2)])
def test_norms_and_biases_decay_when_asked(everything: bool, groups: int) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    optimizer = build_optimizer(model, OptimizerRecipe(weight_decay=0.1, decay_norm_and_bias=everything), "x")
    assert len(optimizer.param_groups) == groups
    undecayed = [p for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]]
    assert len(undecayed) == (0 if everything else 3)


def _moves(name: str) -> bool:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))
    optimizer = build_optimizer(model, OptimizerRecipe(name=name), "x")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(2):  # ADOPT's first step only gathers
        optimizer.zero_grad()
        model(torch.randn(4, 1, 8, 8)).square().mean().backward()
        optimizer.step()
    return any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_every_optimiser_of_timm_steps_or_is_refused() -> None:
    """Without a warning, which this suite makes an error."""
    refused = {}
    for name in map(str, list_optimizers()):
        try:
            assert _moves(name), name
        except RecipeError as error:
            refused[name] = error.message
    assert all(message.startswith("[x] name: ") for message in refused.values())
    # Two families need CUDA and a package; the others that cannot be used are known by name.
    assert {name for name in refused if not name.startswith(("bnb", "fused"))} == {
        "adahessian",
        "kron",
        "kronc",
        "kronw",
    }


def test_a_run_of_one_step_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    assert rates(OptimizerRecipe(lr=1.0), epochs=1, steps=1) == [1.0]
    assert not caplog.records


def test_an_unknown_optimiser_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"student.optimizer\](.|\n)*adamw"):
        build_optimizer(nn.Linear(2, 2), OptimizerRecipe(name="adamww"), "student.optimizer")

"""The optimiser and its learning rate, from timm's factories, with their traps closed."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from distill.errors import RecipeError
from distill.models.build import quiet
from distill.recipe.schema import OptimizerRecipe


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe, where: str) -> torch.optim.Optimizer:
    """timm's optimiser of that name.

    timm leaves norms and biases undecayed unless told otherwise; `decay_norm_and_bias` tells it, as the KD
    literature's recipes need.

    Args:
        model: its trainable parameters are optimised.
        recipe: name and hyper-parameters.
        where: the recipe's table, for the error.

    Raises:
        RecipeError: an unknown name, one that cannot be built with these settings, or one that these loops cannot step.
    """
    known = [str(name) for name in list_optimizers()]
    if recipe.name.lower() not in known:
        near = difflib.get_close_matches(recipe.name.lower(), known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.optim.list_optimizers() lists the names."
        raise RecipeError(f"[{where}] name: found {recipe.name!r}, expected one of timm's optimisers", cure=hint)
    if reason := _unfit(recipe.name.lower()):
        raise RecipeError(f"[{where}] name: {recipe.name!r} cannot be used: {reason}", cure="choose another.")
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=recipe.name,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            filter_bias_and_bn=not recipe.decay_norm_and_bias,
        )
    except (ValueError, TypeError, ImportError, AssertionError) as error:
        raise RecipeError(
            f"[{where}] name: timm cannot build {recipe.name!r}: {str(error).strip()}", cure="choose another."
        ) from error
    return optimizer


def _unfit(name: str) -> str:
    """Why these loops cannot train with an optimiser of timm's, or ""."""
    if get_optimizer_info(name).second_order:
        return "it needs second derivatives of the loss, and these loops give it the gradient only"
    if name.startswith("kron"):
        return "it compiles its step, for up to a minute, and wants a package (opt_einsum) that distill does not need"
    return ""


def build_schedule(optimizer: torch.optim.Optimizer, recipe: OptimizerRecipe, *, epochs: int, steps: int) -> Scheduler:
    """The learning rate as a function of the number of updates done: call `step_update(n)` before update n.

    Args:
        optimizer: from `build_optimizer`.
        recipe: schedule, warm-up, milestones in epochs.
        epochs: passes over the data, the warm-up included.
        steps: updates in an epoch.
    """
    warmup, epochs = recipe.warmup_epochs * steps, max(epochs, 1)  # a schedule of no epoch is never asked
    shared: dict[str, Any] = {
        "t_in_epochs": False,
        "warmup_t": warmup,
        "warmup_lr_init": recipe.lr / max(warmup, 1),  # not 0, which would waste the first step
    }
    if recipe.schedule == "cosine":
        with quiet():  # timm warns that a run of one step has no curve to follow, which is what was asked for
            return CosineLRScheduler(
                optimizer, t_initial=epochs * steps - warmup, lr_min=recipe.min_lr, warmup_prefix=True, **shared
            )
    # timm compares milestones with t + 1, so that its decay comes one early; adding 1 puts it where it is written.
    milestones = [m * steps + 1 for m in recipe.milestones] if recipe.schedule == "multistep" else []
    return MultiStepLRScheduler(optimizer, decay_t=milestones, decay_rate=recipe.gamma, warmup_prefix=False, **shared)

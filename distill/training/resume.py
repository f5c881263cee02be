"""The state that a training goes on from: weights, optimiser, the task's own, and how far it had come."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.errors import StoreError
from distill.store.atomic import writable_folder
from distill.store.checkpoint import load_state, save_state
from distill.training.task import Plan, Progress, Task


def save(task: Task, plan: Plan, progress: Progress) -> None:
    """Writes the resume state, in one stroke."""
    state: dict[str, Any] = {
        "digest": plan.digest,
        "progress": dict(vars(progress)),
        "model": dict(task.model.state_dict()),
        "optimizer": task.optimizer.state_dict(),
        "task": task.state_dict(),
    }
    writable_folder(plan.state.parent)
    save_state(plan.state, state)


def restore(task: Task, plan: Plan) -> Progress:
    """Puts the task where its saved state was; at the start, where there is none.

    Raises:
        StoreError: the state is damaged or belongs to another recipe.
    """
    if not plan.state.exists():
        plan.best_weights.forget()
        return Progress()
    state = load_state(plan.state)
    cure = f"delete {plan.state} to start this stage again."
    if not isinstance(state, dict) or state.get("digest") != plan.digest:
        raise StoreError(f"{plan.state}: this resume state belongs to another recipe", cure=cure)
    try:
        task.model.load_state_dict(state["model"])
        task.optimizer.load_state_dict(state["optimizer"])
        _lay_out(task.optimizer)
        task.load_state_dict(state["task"])
        progress = Progress(**state["progress"])
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise StoreError(f"{plan.state}: this resume state does not fit: {error}", cure=cure) from error
    # A state that is older than `told` has its losses from every step.
    progress.told = progress.told or dict.fromkeys(progress.sums, progress.step)
    if progress.best:
        plan.best_weights.restore(progress.best_sha256)
    else:
        plan.best_weights.forget()
    return progress


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Moments in their parameters' order of memory (channels-last), which a file does not keep: sums depend on it."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

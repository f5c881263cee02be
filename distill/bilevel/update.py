"""Backward and the optimiser's step, with clipping and float16's loss scaling: what teacher and student share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.bilevel import lookahead
from distill.bilevel.contract import Tensors
from distill.bilevel.lookahead import Clip


class Update:
    """One network's updates.

    Args:
        model: the network.
        optimizer: of its parameters.
        precision: of the forward passes; "float16" scales the losses, as its gradients would vanish.
        clip_norm: of the whole gradient; 0: no clipping.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: str, clip_norm: float) -> None:
        self.model = model
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        device = next(model.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device) if precision == "float16" else None

    def backward(self, loss: Tensor) -> Clip | None:
        """Fills the gradients for the optimiser's step, and says how they were clipped if they were."""
        self.clear()
        self.add(loss)
        return self.settle()

    def clear(self) -> None:
        """Forgets the gradients. `clear`, `add` for each part of a batch and `settle` are `backward` in pieces."""
        self.optimizer.zero_grad(set_to_none=True)

    def add(self, loss: Tensor) -> None:
        """Adds the gradient of a part of the loss to the others'."""
        self._scaled(loss).backward()  # type: ignore[no-untyped-call]

    def settle(self) -> Clip | None:
        """Undoes float16's scale and clips; says how the gradients were clipped if they were."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if not self.clip_norm:
            return None
        parameters = lookahead.trained_parameters(self.model)
        norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), self.clip_norm)
        return Clip(self.clip_norm, norm, {name: p.grad for name, p in parameters.items() if p.grad is not None})

    def step(self) -> bool:
        """The optimiser's step. False when it was skipped, because float16's gradients overflowed."""
        if self.scaler is None:
            self.optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before

    def meta_gradient(self, meta_loss: Tensor, *, retain_graph: bool) -> Tensors | None:
        """grad L_meta; None when float16's gradients overflowed: these labels are then not judged."""
        r = gradient_by_name(self._scaled(meta_loss), self.model, retain_graph=retain_graph)
        if self.scaler is None or not r:
            return r
        torch._foreach_mul_(list(r.values()), 1.0 / self.scaler.get_scale())
        finite = torch.stack(torch._foreach_norm(list(r.values()), float("inf"))).isfinite().all()
        return r if finite else None

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def state_dict(self) -> dict[str, Any]:
        """Float16's scale; the optimiser is its owner's to save."""
        return {} if self.scaler is None else {"scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])


def gradient_by_name(loss: Tensor, model: nn.Module, *, retain_graph: bool) -> Tensors:
    """Of the trained parameters; those that the loss does not reach are left out."""
    parameters = lookahead.trained_parameters(model)
    gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=retain_graph, allow_unused=True)
    return {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}

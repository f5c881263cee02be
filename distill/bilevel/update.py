"""Backward and the optimiser's step, with clipping and float16's loss scaling: what teacher and student share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.bilevel import lookahead
from distill.bilevel.contract import Tensors
from distill.bilevel.lookahead import Clip
from distill.errors import BilevelError

_FIRST_SCALE = 2.0**16  # of the meta loss; torch's own for a training loss, as is the next
_GROWN_AFTER = 2000  # gradients in a row that did not overflow
_LEAST_SCALE = 2.0**-16


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
        # Its own: labels that are fitted have small gradients, whose scale grows till the judge's overflow every time.
        self.meta_scale = _FIRST_SCALE
        self._sound = 0  # meta gradients since the last overflow

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
        """grad L_meta; None when float16's gradients overflowed: these labels are then not judged.

        Raises:
            BilevelError: it overflows at any scale.
        """
        scaled = meta_loss if self.scaler is None else meta_loss * self.meta_scale
        r = gradient_by_name(scaled, self.model, retain_graph=retain_graph)
        if self.scaler is None or not r:
            return r
        torch._foreach_mul_(list(r.values()), 1.0 / self.meta_scale)
        finite = torch.stack(torch._foreach_norm(list(r.values()), float("inf"))).isfinite().all()
        return r if self._counted(bool(finite)) else None

    def _counted(self, finite: bool) -> bool:
        """Sets the scale of the next meta loss as torch's `GradScaler` would; returns what it was given."""
        self._sound = self._sound + 1 if finite else 0
        if not finite:
            self.meta_scale /= 2
        elif self._sound == _GROWN_AFTER:
            self.meta_scale, self._sound = self.meta_scale * 2, 0
        if self.meta_scale < _LEAST_SCALE:
            raise BilevelError(
                "learned labels: the meta gradient overflows in float16 at any scale, so no label is judged",
                cure='set teacher.precision = "bfloat16" or "float32", or lower teacher.optimizer.lr.',
            )
        return finite

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def state_dict(self) -> dict[str, Any]:
        """Float16's scales; the optimiser is its owner's to save."""
        if self.scaler is None:
            return {}
        return {"scaler": self.scaler.state_dict(), "meta_scale": self.meta_scale, "sound": self._sound}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
            # A state from when the two losses shared one scale has none of these.
            self.meta_scale, self._sound = float(state.get("meta_scale", _FIRST_SCALE)), int(state.get("sound", 0))


def gradient_by_name(loss: Tensor, model: nn.Module, *, retain_graph: bool) -> Tensors:
    """Of the trained parameters; those that the loss does not reach are left out."""
    parameters = lookahead.trained_parameters(model)
    gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=retain_graph, allow_unused=True)
    return {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}

"""The oracle: double backward through the whole inner step. Exact, slow, and twice the memory; never a default."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.bilevel import hygiene
from distill.bilevel.contract import InnerStep, Tensors
from distill.errors import BilevelError
from distill.losses.soft import soft_cross_entropy


@dataclass(frozen=True)
class Unrolled:
    """dL_meta/dy by differentiating the training gradient and the optimiser step."""

    name: str = "unrolled"
    needs_state: bool = True
    needs_features: bool = False

    def __call__(self, model: nn.Module, inner: InnerStep, meta_gradient: Tensors) -> Tensor:
        """dL_meta/dy, [B, C]."""
        with torch.enable_grad(), hygiene.math_attention():
            try:
                return self._differentiate(model, inner, meta_gradient)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                raise BilevelError(
                    f"unrolled: this model cannot be differentiated twice: {reason}",
                    cure='set teacher.labels.estimator = "auto" or "one-sided".',
                ) from error

    def _differentiate(self, model: nn.Module, inner: InnerStep, meta_gradient: Tensors) -> Tensor:
        theta = {name: t.detach().requires_grad_() for name, t in inner.theta.items()}
        labels = inner.labels.detach().requires_grad_()
        logits = hygiene.silent_forward(
            model, theta, inner.images, seed=inner.seed, precision=inner.precision, buffers=inner.buffers
        )
        loss = soft_cross_entropy(logits, labels).mean()
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True, allow_unused=True)
        used = {name: g for name, g in zip(theta, gradients, strict=True) if g is not None}
        after = inner.look_ahead.step(theta, used)
        product = sum(
            ((after[n] * r).sum() for n, r in meta_gradient.items() if n in after), start=torch.zeros_like(loss)
        )
        (gradient,) = torch.autograd.grad(product, labels)
        return gradient

"""The derivative from one or two more forward passes at nearby parameters."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.bilevel import hygiene
from distill.bilevel.contract import InnerStep, Tensors


@dataclass(frozen=True)
class FiniteDifference:
    """(log p(theta + eps v) - log p(theta)) / eps, or the central form, with eps = reach / norm(v).

    `reach` is how far the parameters are moved, whatever the meta gradient's size: at 1e-3 the cosine with the exact
    derivative is .99999 or better in float32 on the nets tried, at 1 it falls to .5. The one-sided form costs one
    forward pass, since the training forward's own logits are its other end; in half precision that drowns in rounding.
    The central form makes both ends anew, in float32 whatever the network trains in.
    """

    central: bool = False
    reach: float = 1e-3
    needs_state: bool = False
    needs_features: bool = False

    @property
    def name(self) -> str:
        """As a recipe names it."""
        return "central" if self.central else "one-sided"

    def __call__(self, model: nn.Module, inner: InnerStep, meta_gradient: Tensors) -> Tensor:
        """dL_meta/dy, [B, C]."""
        direction = inner.look_ahead.pull_back(meta_gradient)
        norms = torch._foreach_norm(list(direction.values()))
        norm = torch.stack([n.to(inner.labels) for n in norms]).norm()
        # A zero direction gives a zero derivative; no branch, which would wait for the device.
        eps = self.reach / norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)
        ahead = self._log_probabilities(model, inner, direction, eps)
        if self.central:
            behind = self._log_probabilities(model, inner, direction, -eps)
            slope = (ahead - behind) / (2 * eps)
        else:
            slope = (ahead - inner.log_probabilities) / eps
        gradient: Tensor = -slope / inner.images.shape[0]
        return gradient

    def _log_probabilities(self, model: nn.Module, inner: InnerStep, direction: Tensors, eps: Tensor) -> Tensor:
        # Added onto clones: these lie in memory as the weights of the training forward do, so the same kernels run and
        # their rounding errors cancel in the difference. (The weights of one-channel convolutions fit two layouts.)
        moved = {name: theta.clone() if name in direction else theta for name, theta in inner.theta.items()}
        torch._foreach_add_([moved[name] for name in direction], torch._foreach_mul(list(direction.values()), eps))
        precision = "float32" if self.central else inner.precision
        # The one-sided form's other end is the training forward, which may have TF32: both ends have to be alike.
        exact = hygiene.full_float32() if self.central else nullcontext()
        with torch.no_grad(), exact:
            logits = hygiene.silent_forward(
                model, moved, inner.images, seed=inner.seed, precision=precision, buffers=inner.buffers
            )
            return torch.log_softmax(logits.to(inner.log_probabilities.dtype), dim=-1)

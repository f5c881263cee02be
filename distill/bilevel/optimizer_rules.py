"""Each optimiser's step as a function of the gradient, for one parameter, and how it is read off the real optimiser.

Each rule has two forms of the same thing: `step`, differentiable and a line-by-line restatement of the optimiser, is
the definition; `factor`, the diagonal of d theta'/d g, is what the fast estimators use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Rule(Protocol):
    """One parameter's part of an optimiser step, with the state from before it."""

    @property
    def lr(self) -> float:
        """Learning rate of this step."""
        ...

    def factor(self) -> float | Tensor:
        """d theta'/d g, which is elementwise: one number, or one for each element."""
        ...

    def step(self, theta: Tensor, g: Tensor) -> Tensor:
        """theta', differentiable in g."""
        ...


@dataclass(frozen=True)
class SGDRule:
    """PyTorch's SGD.

    d = g + weight_decay * theta;  m = d at the very first step, else momentum * m + (1 - dampening) * d;
    theta' = theta - lr * (d + momentum * m if Nesterov, else m; without momentum d).
    """

    lr: float
    momentum: float
    dampening: float
    nesterov: bool
    weight_decay: float
    first: bool  # no momentum buffer yet: PyTorch then leaves the dampening out
    buffer: Tensor | None = None  # m before the step; only `step` needs it

    def factor(self) -> float:
        """See `Rule`; weight decay does not change it."""
        if self.momentum == 0:
            return -self.lr
        fresh = 1.0 if self.first else 1.0 - self.dampening
        return -self.lr * (1.0 + self.momentum * fresh if self.nesterov else fresh)

    def step(self, theta: Tensor, g: Tensor) -> Tensor:
        """See `Rule`."""
        d = g + self.weight_decay * theta
        if self.momentum == 0:
            return theta - self.lr * d
        if self.first:
            m = d
        else:
            assert self.buffer is not None, "recorded without its state"
            m = self.momentum * self.buffer + (1.0 - self.dampening) * d
        return theta - self.lr * (d + self.momentum * m if self.nesterov else m)


@dataclass(frozen=True)
class AdamRule:
    """PyTorch's Adam and AdamW (Kingma and Ba, arXiv 1412.6980; Loshchilov and Hutter, arXiv 1711.05101).

    d = g (+ weight_decay * theta for Adam);  m = b1 m + (1 - b1) d;  s = b2 s + (1 - b2) d^2;
    theta' = theta (* (1 - lr weight_decay) for AdamW) - lr / (1 - b1^t) * m / (sqrt(s / (1 - b2^t)) + eps).

    At the first step this is nearly the sign of d, whose derivative is nearly 0: no label should be learned from it.
    Where d was always 0, as in a unit that no training image has lit, the derivative is taken for 0 and not for its
    lr (1 - b1) / eps, some 10^4 times the others': a batch that does not light it either has nothing there to be judged
    by, and a direction that is nearly all of such elements leaves a finite difference nothing but rounding.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool  # AdamW
    count: int  # t, this step included
    diagonal: Tensor  # d theta'/d g, [same shape]
    exp_avg: Tensor | None = None  # m before the step; only `step` needs it
    exp_avg_sq: Tensor | None = None  # s before the step; only `step` needs it

    def factor(self) -> Tensor:
        """See `Rule`."""
        return self.diagonal

    def step(self, theta: Tensor, g: Tensor) -> Tensor:
        """See `Rule`."""
        assert self.exp_avg is not None, "recorded without its state"
        assert self.exp_avg_sq is not None, "recorded without its state"
        d = g if self.decoupled else g + self.weight_decay * theta
        kept = theta * (1 - self.lr * self.weight_decay) if self.decoupled else theta
        m = self.beta1 * self.exp_avg + (1 - self.beta1) * d
        s = self.beta2 * self.exp_avg_sq + (1 - self.beta2) * d * d
        lit = s > 0
        m = torch.where(lit, m, m.detach())
        root = torch.where(lit, torch.where(lit, s, 1.0).sqrt(), 0.0) / math.sqrt(1 - self.beta2**self.count)
        return kept - self.lr / (1 - self.beta1**self.count) * m / (root + self.eps)


def _sgd_rule(group: dict[str, Any], state: dict[str, Any], parameter: Tensor, g: Tensor, keep_state: bool) -> Rule:
    buffer = state.get("momentum_buffer")
    return SGDRule(
        lr=float(group["lr"]),
        momentum=group["momentum"],
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        weight_decay=group["weight_decay"],
        first=buffer is None,
        buffer=buffer.clone() if keep_state and buffer is not None else None,
    )


@torch.no_grad()
def _adam_rule(group: dict[str, Any], state: dict[str, Any], parameter: Tensor, g: Tensor, keep_state: bool) -> Rule:
    zero = torch.zeros_like(parameter)
    lr, eps, (beta1, beta2) = float(group["lr"]), float(group["eps"]), map(float, group["betas"])
    decoupled = bool(group["decoupled_weight_decay"])
    d = g if decoupled else g + group["weight_decay"] * parameter
    count = int(state["step"]) + 1 if state else 1
    exp_avg, exp_avg_sq = state.get("exp_avg", zero), state.get("exp_avg_sq", zero)
    m = beta1 * exp_avg + (1 - beta1) * d
    s = beta2 * exp_avg_sq + (1 - beta2) * d * d
    correction = math.sqrt(1 - beta2**count)
    denominator = s.sqrt() / correction + eps
    slope = (1 - beta2) * d / (s.sqrt() * correction)  # d denominator / d g
    diagonal = -lr / (1 - beta1**count) * ((1 - beta1) - m * slope / denominator) / denominator
    return AdamRule(
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=group["weight_decay"],
        decoupled=decoupled,
        count=count,
        diagonal=torch.where(s > 0, diagonal, 0.0),
        exp_avg=exp_avg.clone() if keep_state else None,
        exp_avg_sq=exp_avg_sq.clone() if keep_state else None,
    )


# By exact type: a subclass (a timm optimiser derived from SGD, SAM around it) may step differently.
BUILDERS = {torch.optim.SGD: _sgd_rule, torch.optim.Adam: _adam_rule, torch.optim.AdamW: _adam_rule}

RULES: dict[str, type[SGDRule] | type[AdamRule]] = {"SGDRule": SGDRule, "AdamRule": AdamRule}

"""How a real optimiser step depends on the gradient: theta' = optimiser(clip(g)).

Each rule has two forms of the same thing: `step`, differentiable and a line-by-line restatement of the optimiser, is
the definition; `factor`, the diagonal of d theta'/d g, is what the fast estimators use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distill.errors import BilevelError

Tensors = dict[str, Tensor]  # by parameter name


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


@dataclass(frozen=True)
class Clip:
    """Clipping by global norm, c = g * min(1, max_norm / (norm + 1e-6)), as torch's `clip_grad_norm_` does it."""

    max_norm: float
    norm: Tensor  # of the gradient before, []
    clipped: Tensors  # c

    def pull_back(self, r: Tensors) -> Tensors:
        """(d c/d g)^T r: every parameter's gradient bears on every other's."""
        # A parameter that the meta loss does not reach still bears on the norm, and so on the others.
        names = list(self.clipped)
        cs = list(self.clipped.values())
        rs = [r[name] if name in r else torch.zeros_like(c) for name, c in self.clipped.items()]
        inner = torch.stack([(c * t).sum() for c, t in zip(cs, rs, strict=True)]).sum()
        clipping = self.norm + 1e-6 > self.max_norm
        shrink = torch.where(clipping, self.max_norm / (self.norm + 1e-6), 1.0)
        along = torch.where(clipping, -inner / (self.max_norm * self.norm.clamp_min(1e-30)), 0.0)
        pulled = torch._foreach_add(torch._foreach_mul(rs, shrink), torch._foreach_mul(cs, along))
        return dict(zip(names, pulled, strict=True))

    def apply(self, gradient: Tensors) -> Tensors:
        """c, differentiable in g."""
        norm = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt()
        shrink = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        return {name: g * shrink for name, g in gradient.items()}


@dataclass(frozen=True)
class LookAhead:
    """The rules of one optimiser step, by parameter name, recorded before the step is taken."""

    rules: Mapping[str, Rule]
    clip: Clip | None = None

    @property
    def lr(self) -> float:
        """The largest learning rate among the parameters."""
        return max((rule.lr for rule in self.rules.values()), default=0.0)

    def gain(self, meta_gradient: Tensors) -> float | Tensor:
        """The learning rate of the plain step that lowers the meta loss as much: what the label step is freed of.

        lr with SGD. Adam's factors are besides some ten to thousands, 1 / (sqrt(s) + eps): r^T |A| r / r^T r, A their
        diagonal, [] on the device. Clipping is left out of both.
        """
        if not any(isinstance(rule, AdamRule) for rule in self.rules.values()):
            return self.lr
        moved = self._moved(meta_gradient)
        names = list(moved)
        along = torch._foreach_mul([moved[name] for name in names], [meta_gradient[name] for name in names])
        lowered = torch.stack(torch._foreach_norm(list(along), 1)).sum()
        plain = torch.stack(torch._foreach_norm([meta_gradient[name] for name in names])).square().sum()
        gain = lowered / plain
        return torch.where(gain > 0, gain, self.lr)  # nothing there to be judged by: nor does any scale matter

    def pull_back(self, meta_gradient: Tensors) -> Tensors:
        """v = (d theta'/d g)^T r, by name; for parameters that the step moves."""
        v = self._moved(meta_gradient)
        return v if self.clip is None else self.clip.pull_back(v)

    def _moved(self, gradient: Tensors) -> Tensors:
        """The rules' factors times the gradient, by name."""
        names = [name for name in gradient if name in self.rules]
        factors = [self.rules[name].factor() for name in names]
        gradients = [gradient[name] for name in names]
        if any(isinstance(factor, Tensor) for factor in factors):
            moved = [g * factor for g, factor in zip(gradients, factors, strict=True)]
        else:
            moved = list(torch._foreach_mul(gradients, [float(factor) for factor in factors]))
        return dict(zip(names, moved, strict=True))

    def step(self, theta: Tensors, gradient: Tensors) -> Tensors:
        """theta', by name, differentiable in the gradient."""
        if self.clip is not None:
            gradient = self.clip.apply(gradient)
        return {name: self.rules[name].step(theta[name], g) for name, g in gradient.items()}

    def state_dict(self) -> dict[str, Any]:
        """As a tree of plain values and tensors."""
        rules = {name: {"rule": type(rule).__name__, **_plain(rule)} for name, rule in self.rules.items()}
        return {"rules": rules, "clip": None if self.clip is None else _plain(self.clip)}

    @classmethod
    def from_state(cls, state: dict[str, Any], model: nn.Module) -> LookAhead:
        """The inverse of `state_dict`; tensors get their parameters' memory format back."""
        like = trained_parameters(model)
        rules = {}
        for name, kept in state["rules"].items():
            values = {k: _laid_out(v, like[name]) for k, v in kept.items() if k != "rule"}
            rules[name] = _RULES[kept["rule"]](**values)
        clip = state["clip"]
        if clip is not None:
            clipped = laid_out_like_parameters(clip["clipped"], model)
            device = next(model.parameters()).device
            clip = Clip(clip["max_norm"], clip["norm"].to(device), clipped)
        return cls(rules, clip)


_RULES: dict[str, type[SGDRule] | type[AdamRule]] = {"SGDRule": SGDRule, "AdamRule": AdamRule}


def _plain(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}


def record(
    optimizer: torch.optim.Optimizer,
    parameters: Tensors,
    *,
    keep_state: bool,
    clip: Clip | None = None,
    gradients: Tensors | None = None,
) -> LookAhead:
    """Notes how the coming `optimizer.step()` will depend on the gradient.

    Args:
        optimizer: the real optimiser, after the backward pass (and the clipping) and before its step.
        parameters: what it trains, by name; those without a gradient are not stepped and have no rule.
        keep_state: copy the optimiser's buffers too, which only the unrolled estimator needs.
        clip: how the gradients were clipped, if they were.
        gradients: what it would step by, by name; None: the parameters' own `grad`.

    Raises:
        BilevelError: the optimiser has no rule, or a parameter is in none of its groups.
    """
    build = _BUILDERS.get(type(optimizer))
    if build is None:
        raise BilevelError(
            f"learned labels: {type(optimizer).__name__} has no look-ahead rule; torch's SGD, Adam and AdamW have",
            cure='set teacher.optimizer.name to "momentum", "sgd" or "adamw", or a fixed rule in teacher.labels.rule.',
        )
    if gradients is None:
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    rules: dict[str, Rule] = {}
    for name, parameter in parameters.items():
        group = groups.get(id(parameter))
        if group is None:
            raise BilevelError(
                f"learned labels: parameter {name} requires a gradient but the optimiser does not train it",
                cure="freeze it (requires_grad_(False)) or give it to the optimiser.",
            )
        if group["maximize"] or group.get("amsgrad"):
            raise BilevelError(
                "learned labels: the look-ahead has no rule for maximize or amsgrad", cure="switch both off."
            )
        if name in gradients:
            rules[name] = build(group, optimizer.state.get(parameter, {}), parameter, gradients[name], keep_state)
    if clip is not None:
        # Copied: torch's grouped SGD adds the momentum to the gradients in place when it is Nesterov's.
        clip = Clip(clip.max_norm, clip.norm, {name: c.clone() for name, c in clip.clipped.items()})
    return LookAhead(rules, clip)


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
_BUILDERS = {torch.optim.SGD: _sgd_rule, torch.optim.Adam: _adam_rule, torch.optim.AdamW: _adam_rule}


def trained_parameters(model: nn.Module) -> Tensors:
    """The parameters that require a gradient, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def laid_out_like_parameters(tensors: Tensors, model: nn.Module) -> Tensors:
    """Copies by parameter name, in each parameter's memory format.

    A file keeps no memory format, and sums taken in another order round differently.
    """
    like = trained_parameters(model)
    return {name: _laid_out(t, like[name]) for name, t in tensors.items()}


def _laid_out(value: Any, like: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_like(like, requires_grad=False).copy_(value)

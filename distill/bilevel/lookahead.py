"""How a real optimiser step depends on the gradient: theta' = optimiser(clip(g)).

`optimizer_rules` says it for one parameter; here are all of a network's, with the clipping that ties them together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from distill.bilevel.optimizer_rules import BUILDERS, RULES, AdamRule, Rule
from distill.errors import BilevelError

Tensors = dict[str, Tensor]  # by parameter name


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
            rules[name] = RULES[kept["rule"]](**values)
        clip = state["clip"]
        if clip is not None:
            clipped = laid_out_like_parameters(clip["clipped"], model)
            device = next(model.parameters()).device
            clip = Clip(clip["max_norm"], clip["norm"].to(device), clipped)
        return cls(rules, clip)


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
    build = BUILDERS.get(type(optimizer))
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

"""How a real optimiser step depends on the gradient: theta' = optimiser(theta, g).

For each optimiser two forms of the same thing: `step`, differentiable and a line-by-line restatement of the optimiser,
is the definition; `pull_back`, v = (d theta'/d g)^T r, is what the fast estimators use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.errors import BilevelError

SUPPORTED = "torch.optim.SGD (timm's 'sgd', 'nesterov' and 'momentum')"


@dataclass(frozen=True)
class SGDRule:
    """PyTorch's SGD for one parameter, with the state from before the step.

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
        """d theta'/d g, the same for every element; weight decay does not change it."""
        if self.momentum == 0:
            return -self.lr
        fresh = 1.0 if self.first else 1.0 - self.dampening
        return -self.lr * (1.0 + self.momentum * fresh if self.nesterov else fresh)

    def step(self, theta: Tensor, g: Tensor) -> Tensor:
        """theta' [same shape], differentiable in g."""
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
class LookAhead:
    """The rules of one optimiser step, by parameter name, recorded before the step is taken."""

    rules: dict[str, SGDRule]

    @property
    def lr(self) -> float:
        """The largest learning rate among the parameters: what the label step is freed of."""
        return max((rule.lr for rule in self.rules.values()), default=0.0)

    def pull_back(self, meta_gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        """v = (d theta'/d g)^T r, by name."""
        names = list(meta_gradient)
        scaled = torch._foreach_mul([meta_gradient[n] for n in names], [self.rules[n].factor() for n in names])
        return dict(zip(names, scaled, strict=True))

    def step(self, theta: dict[str, Tensor], gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        """theta', by name, differentiable in the gradient."""
        return {name: self.rules[name].step(theta[name], g) for name, g in gradient.items()}


def record(optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor], *, keep_state: bool) -> LookAhead:
    """Notes how the coming `optimizer.step()` will depend on the gradient.

    Args:
        optimizer: the real optimiser, before its step.
        parameters: what it trains, by name.
        keep_state: copy the momentum buffers too, which only the unrolled estimator needs.

    Raises:
        BilevelError: the optimiser has no rule, or a parameter is in none of its groups.
    """
    # The exact type: a subclass (a timm optimiser derived from SGD, SAM around it) may step differently.
    if type(optimizer) is not torch.optim.SGD:
        raise BilevelError(
            f"learned labels: {type(optimizer).__name__} has no look-ahead rule, expected {SUPPORTED}",
            cure='set teacher.optimizer.name = "momentum", or a fixed rule in teacher.labels.rule.',
        )
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    rules = {}
    for name, parameter in parameters.items():
        if id(parameter) not in groups:
            raise BilevelError(
                f"learned labels: parameter {name} requires a gradient but the optimiser does not train it",
                cure="freeze it (requires_grad_(False)) or give it to the optimiser.",
            )
        group = groups[id(parameter)]
        if group["maximize"]:
            raise BilevelError("learned labels: SGD with maximize=True has no look-ahead rule", cure="minimise.")
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        rules[name] = SGDRule(
            lr=float(group["lr"]),
            momentum=group["momentum"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            weight_decay=group["weight_decay"],
            first=buffer is None,
            buffer=buffer.clone() if keep_state and buffer is not None else None,
        )
    return LookAhead(rules)


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that require a gradient, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}

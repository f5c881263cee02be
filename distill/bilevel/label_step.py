"""From a meta gradient to a step of the labels. Shared by both meta sources."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.bilevel.contract import Estimator, InnerStep, Tensors
from distill.bilevel.estimators import from_state, state_of
from distill.bilevel.lookahead import laid_out_like_parameters
from distill.bilevel.slow import SlowNetwork
from distill.bilevel.targets import Target
from distill.errors import BilevelError
from distill.labels.learned import Learned


class LabelStep:
    """Takes the derivative and moves the labels by it.

    Args:
        rule: the learned labels.
        estimator: how the derivative is taken.
        meta_gradient_mean: decay of a running mean of the meta gradient; 0 takes each one as it is.
        slow: whose answers the labels are pulled to; None: the network's own in the training forward.
    """

    def __init__(
        self, rule: Learned, estimator: Estimator, meta_gradient_mean: float, slow: SlowNetwork | None = None
    ) -> None:
        self.rule = rule
        self.estimator = estimator
        self.decay = meta_gradient_mean
        self.slow = slow
        self.mean: Tensors = {}
        self.updates = 0
        self.finite: Tensor | None = None

    def __call__(self, model: nn.Module, inner: InnerStep, target: Target, r: Tensors) -> None:
        """Judges the labels of an inner step by the meta gradient r at theta' and moves them."""
        if inner.look_ahead.lr == 0:
            return  # the step did not move the network, so it says nothing about its labels
        r = self._averaged(r)
        gradient = self.estimator(model, inner, r)
        gradient = self.rule.through_loss(gradient, inner.labels, inner.log_probabilities)
        finite = torch.isfinite(gradient).all()
        self.finite = finite if self.finite is None else self.finite & finite
        # Without lr/B the label step means the same at every batch size, point of the schedule and optimiser.
        scale = inner.images.shape[0] / inner.look_ahead.gain(r)
        answers = self._answers(inner) if self.rule.reads_answers else None
        if target.shares is not None:
            gradient = torch.cat([gradient, gradient])
        self.rule.learn(
            target.indices,
            target.given,
            target.parts,
            gradient,
            scale=scale,
            shares=target.shares,
            answers=answers,
        )

    def _answers(self, inner: InnerStep) -> Tensor:
        if self.slow is None:
            return inner.log_probabilities.exp()
        return self.slow.answers(inner.images).to(inner.log_probabilities.dtype)

    def after_step(self, model: nn.Module) -> None:
        """To be called whenever the network has moved."""
        if self.slow is not None:
            self.slow.follow(model)

    def _averaged(self, r: Tensors) -> Tensors:
        if self.decay == 0 or not r:
            return r
        self.updates += 1
        if not self.mean:
            self.mean = {name: torch.zeros_like(t) for name, t in r.items()}
        torch._foreach_lerp_([self.mean[name] for name in r], list(r.values()), 1 - self.decay)
        means = torch._foreach_div(list(self.mean.values()), 1 - self.decay**self.updates)
        return dict(zip(self.mean, means, strict=True))

    def check(self) -> None:
        """Raises BilevelError when a derivative was not finite."""
        if self.finite is not None and not bool(self.finite):
            raise BilevelError(
                "learned labels: the meta gradient is not finite (NaN or infinite), so the labels are lost",
                cure="lower teacher.optimizer.lr, or raise warmup_epochs of teacher.optimizer and teacher.labels.",
            )

    def state_dict(self) -> dict[str, Any]:
        """The running mean, and the estimator, which may have been chosen anew since the start."""
        state = {"mean": dict(self.mean), "updates": self.updates, "estimator": state_of(self.estimator)}
        return state if self.slow is None else state | {"slow": self.slow.state_dict()}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """The inverse of `state_dict`."""
        self.mean = laid_out_like_parameters(state["mean"], model)
        self.updates = int(state["updates"])
        self.estimator = from_state(state["estimator"])
        if self.slow is not None:
            self.slow.load_state_dict(state["slow"])

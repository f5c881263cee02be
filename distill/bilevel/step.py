"""One training step of a teacher: plain, or with the labels learned in the same breath.

The look-ahead is the real step: the optimiser moves the network once, no copy of it is ever made; only the parameters
from before the step are kept, because the Jacobian belongs there.

    held-out     forward, backward, step; forward and backward of a meta batch at theta'; directional derivative
    next-batch   the next batch's training forward *is* the meta forward: one forward, two backwards on its graph (given
                 labels, learned labels), directional derivative for the batch before
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distill.bilevel import hygiene, lookahead
from distill.bilevel.contract import InnerStep, Tensors
from distill.bilevel.label_step import LabelStep
from distill.bilevel.lookahead import Clip, LookAhead, laid_out_like_parameters
from distill.bilevel.targets import Target, meta_loss, soft_loss
from distill.bilevel.update import Update
from distill.data.loader import Batch
from distill.labels.rules import LabelRule
from distill.seeding import derive


class Step(Protocol):
    """What the teacher's loop calls for each batch."""

    def __call__(self, batch: Batch, number: int, *, learn: bool) -> dict[str, Tensor]:
        """Trains on one batch and returns its named losses, detached, without waiting for the device.

        Args:
            batch: images and given labels.
            number: how many steps came before, over the whole run; seeds dropout.
            learn: whether the labels of this batch are to be judged.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides model, optimiser and labels."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...

    def check(self) -> None:
        """Raises BilevelError when a meta gradient was not finite."""
        ...


@dataclass
class Training:
    """What every step works on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    rule: LabelRule
    seed: int
    precision: str = "float32"
    clip_norm: float = 0.0  # of the whole gradient; 0: no clipping
    meta_loss_q: float = 0.0  # of what judges the labels, see `targets.meta_loss`
    update: Update = field(init=False)

    def __post_init__(self) -> None:
        self.update = Update(self.model, self.optimizer, self.precision, self.clip_norm)

    def forward_seed(self, number: int) -> int:
        """Dropout's seed in the training forward of one step."""
        return derive(self.seed, "forward", number)

    def forward(self, batch: Batch, number: int) -> Tensor:
        """The training forward: logits [B, C]."""
        return hygiene.training_forward(
            self.model, batch.images, seed=self.forward_seed(number), precision=self.precision
        )

    def record(
        self,
        batch: Batch,
        number: int,
        logits: Tensor,
        labels: Tensor,
        clip: Clip | None,
        *,
        keep_state: bool,
        features: Sequence[Tensor] = (),
        buffers: Tensors | None = None,
    ) -> InnerStep:
        """Keeps what judging this step's labels will need; to be called before the optimiser's step."""
        parameters = lookahead.trained_parameters(self.model)
        log_probabilities = torch.log_softmax(logits.detach().to(labels.dtype), dim=-1)
        return InnerStep(
            theta={name: p.detach().clone() for name, p in parameters.items()},
            look_ahead=lookahead.record(self.optimizer, parameters, keep_state=keep_state, clip=clip),
            images=batch.images,
            labels=labels,
            log_probabilities=log_probabilities,
            seed=self.forward_seed(number),
            precision=self.precision,
            features=features[0] if features else None,
            buffers=buffers or {},
        )


class PlainStep:
    """Forward, backward, step: fixed labels."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def __call__(self, batch: Batch, number: int, *, learn: bool) -> dict[str, Tensor]:
        """See `Step`; there is nothing to learn."""
        logits = self.training.forward(batch, number)
        losses, _ = soft_loss(self.training.rule, logits, batch)
        loss = losses.mean()
        self.training.update.backward(loss)
        self.training.update.step()
        return {"loss": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        """Float16's scale."""
        return {"update": self.training.update.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.training.update.load_state_dict(state["update"])

    def check(self) -> None:
        """Nothing."""


class HeldOutStep:
    """The labels are judged by a batch of the held-out meta images, at theta'."""

    def __init__(self, training: Training, label_step: LabelStep, meta_batch: Callable[[int], Batch]) -> None:
        self.training = training
        self.label_step = label_step
        self.meta_batch = meta_batch

    def __call__(self, batch: Batch, number: int, *, learn: bool) -> dict[str, Tensor]:
        """See `Step`."""
        training, estimator = self.training, self.label_step.estimator
        with (
            hygiene.kept_features(training.model, wanted=learn and estimator.needs_features) as features,
            hygiene.kept_buffers(training.model, wanted=learn) as buffers,
        ):
            logits = training.forward(batch, number)
        losses, target = soft_loss(training.rule, logits, batch)
        loss = losses.mean()
        clip = training.update.backward(loss)
        if not learn:
            if training.update.step():
                self.label_step.after_step(training.model)
            return {"loss": loss.detach()}
        inner = training.record(
            batch,
            number,
            logits,
            target.labels,
            clip,
            keep_state=estimator.needs_state,
            features=features,
            buffers=buffers,
        )
        if not training.update.step():
            return {"loss": loss.detach()}  # the network did not move, which says nothing about its labels
        self.label_step.after_step(training.model)
        judged = self._meta_loss(number)
        r = training.update.meta_gradient(judged, retain_graph=False)
        if r is not None:
            self.label_step(training.model, inner, target, r)
        return {"loss": loss.detach(), "meta_loss": judged.detach()}

    def _meta_loss(self, number: int) -> Tensor:
        meta = self.meta_batch(number)
        parameters = lookahead.trained_parameters(self.training.model)
        logits = hygiene.silent_forward(
            self.training.model,
            parameters,
            meta.images,
            seed=derive(self.training.seed, "meta-forward", number),
            precision=self.training.precision,
        )
        return meta_loss(logits, meta, self.training.meta_loss_q).mean()

    def state_dict(self) -> dict[str, Any]:
        """Float16's scale, and the label step's."""
        return {"update": self.training.update.state_dict(), "label_step": self.label_step.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.training.update.load_state_dict(state["update"])
        self.label_step.load_state_dict(state["label_step"], self.training.model)

    def check(self) -> None:
        """See `Step`."""
        self.label_step.check()


@dataclass(frozen=True)
class Pending:
    """A batch whose labels wait to be judged by the next one."""

    inner: InnerStep
    target: Target


class NextBatchStep:
    """The labels of a batch are judged by the next batch, before that one is trained on. No image is set aside."""

    def __init__(self, training: Training, label_step: LabelStep) -> None:
        self.training = training
        self.label_step = label_step
        self.pending: Pending | None = None

    def __call__(self, batch: Batch, number: int, *, learn: bool) -> dict[str, Tensor]:
        """See `Step`. `learn` keeps this batch for the next step to judge."""
        training, estimator = self.training, self.label_step.estimator
        with (
            hygiene.kept_features(training.model, wanted=learn and estimator.needs_features) as features,
            hygiene.kept_buffers(training.model, wanted=learn) as buffers,
        ):
            logits = training.forward(batch, number)
        pending, self.pending = self.pending, None
        told, r = {}, None
        if pending is not None:
            told["meta_loss"] = meta_loss(logits, batch, training.meta_loss_q).mean()
            r = training.update.meta_gradient(told["meta_loss"], retain_graph=True)
        losses, target = soft_loss(training.rule, logits, batch)
        told["loss"] = losses.mean()
        clip = training.update.backward(told["loss"])
        # Judged only now that the graph is freed, so that the two never lie in memory together. A class table's labels
        # are therefore those from before this judgement; instance rows of two batches in a row hardly ever meet.
        if pending is not None and r is not None:
            self.label_step(training.model, pending.inner, pending.target, r)
        waiting = None
        if learn:
            inner = training.record(
                batch,
                number,
                logits,
                target.labels,
                clip,
                keep_state=estimator.needs_state,
                features=features,
                buffers=buffers,
            )
            waiting = Pending(inner, target)
        if training.update.step():
            self.pending = waiting  # else the network did not move, which says nothing about its labels
            self.label_step.after_step(training.model)
        return {name: value.detach() for name, value in told.items()}

    def state_dict(self) -> dict[str, Any]:
        """Scale, label step, and the batch that waits: an interruption loses no label update."""
        state: dict[str, Any] = {"update": self.training.update.state_dict(), "pending": None}
        state["label_step"] = self.label_step.state_dict()
        if self.pending is not None:
            inner, target = self.pending.inner, self.pending.target
            plain = {name: getattr(inner, name) for name in InnerStep.__dataclass_fields__ if name != "look_ahead"}
            rest = {"target": dict(vars(target)), "look_ahead": inner.look_ahead.state_dict()}
            state["pending"] = plain | rest
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.training.update.load_state_dict(state["update"])
        self.label_step.load_state_dict(state["label_step"], self.training.model)
        if state["pending"] is None:
            self.pending = None
            return
        device = next(self.training.model.parameters()).device
        kept: dict[str, Any] = {
            name: t.to(device) if isinstance(t, Tensor) else t for name, t in state["pending"].items()
        }
        target: dict[str, Any] = {name: t if t is None else t.to(device) for name, t in kept.pop("target").items()}
        kept["look_ahead"] = LookAhead.from_state(kept["look_ahead"], self.training.model)
        kept["buffers"] = {name: t.to(device) for name, t in kept["buffers"].items()}
        kept["theta"] = laid_out_like_parameters(kept["theta"], self.training.model)
        self.pending = Pending(InnerStep(**kept), Target(**target))

    def check(self) -> None:
        """See `Step`."""
        self.label_step.check()

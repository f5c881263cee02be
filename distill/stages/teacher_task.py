"""The teacher's side of `training.loop`: its images and labels in each epoch, its step, and what it takes to go on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distill.bilevel.contract import Estimator
from distill.bilevel.estimators import described
from distill.bilevel.label_step import LabelStep
from distill.bilevel.probe import choose_estimator
from distill.bilevel.slow import SlowNetwork
from distill.bilevel.step import HeldOutStep, NextBatchStep, PlainStep, Step, Training
from distill.data.loader import Batch, ImageData, make_batch, ordered_batches, steps_per_epoch, training_batches
from distill.errors import BilevelError
from distill.labels.build import Images, label_rule
from distill.labels.learned import Learned
from distill.labels.optim import step_factor
from distill.labels.phases import Settled
from distill.labels.watch import SATURATED, Watch, cure_for, label_metrics
from distill.recipe.schema import LEARNED_RULES, LabelsRecipe, Recipe
from distill.seeding import derive, generator
from distill.stages.common import build_network
from distill.training.events import Listener, Notice
from distill.training.scaling import answered


def training_rows(data: ImageData, labels: LabelsRecipe) -> Tensor:
    """Source indices that the teacher is trained on, int64 [N]; the meta images too unless they judge the labels."""
    return data.splits.train if _judged_by_meta_images(labels) else data.splits.teachable


def _judged_by_meta_images(labels: LabelsRecipe) -> bool:
    return labels.rule in LEARNED_RULES and labels.meta == "held-out"


def _known(labels: LabelsRecipe) -> bool:
    """Whether the rule is told that the meta images' labels are right, and leaves them as they are."""
    return labels.meta_joins != "never" if labels.rule in LEARNED_RULES else labels.pencil.keep_meta


class TeacherTask:
    """The teacher's side of `training.loop`."""

    def __init__(self, recipe: Recipe, data: ImageData, device: torch.device, listener: Listener) -> None:
        teacher = recipe.teacher
        self.recipe, self.data, self.device = recipe, data, device
        self.epochs = teacher.epochs
        self.rows = training_rows(data, teacher.labels)
        judged = _judged_by_meta_images(teacher.labels)
        self.joined = data.splits.teachable if judged and teacher.labels.meta_joins != "never" else None
        self.batch_size = teacher.batch_size
        self.steps = steps_per_epoch(self.rows.numel(), self.batch_size)
        self.spec, self.model, self.optimizer = build_network(teacher, "teacher", data, recipe.seed, device)
        rows = self.rows if self.joined is None else self.joined  # a row for whoever is ever trained on
        known = data.splits.meta if _known(teacher.labels) else None
        images = Images(rows, data.labels.given[rows], len(data.source.classes), self.epochs, device, known)
        self.rule = label_rule(teacher.labels, images)
        self.listener = listener
        sure = teacher.labels.rule not in LEARNED_RULES or teacher.labels.true_class_mass > SATURATED
        self._watch = Watch(images.classes, cure_for(teacher.labels), saturated_at_first=sure)
        self._settled = Settled(teacher.labels.freeze_patience if teacher.labels.rule in LEARNED_RULES else 0)
        self.training = Training(
            self.model,
            self.optimizer,
            self.rule,
            seed=derive(recipe.seed, "teacher-step"),
            precision=teacher.precision,
            clip_norm=teacher.clip_norm,
            meta_loss_q=teacher.labels.meta_loss_q,
        )
        self.label_step: LabelStep | None = None
        self._step = self._build_step()

    def _build_step(self) -> Step:
        labels = self.recipe.teacher.labels
        if not isinstance(self.rule, Learned):
            return PlainStep(self.training)
        self.listener(Notice(f"label rows: {labels.optimizer}, backend {self.rule.backend}"))
        self.label_step = LabelStep(self.rule, self._choose(0), labels.meta_gradient_mean, self._slow(self.rule))
        if labels.meta == "held-out":
            return HeldOutStep(self.training, self.label_step, self.meta_batch)
        return NextBatchStep(self.training, self.label_step)

    def _slow(self, rule: Learned) -> SlowNetwork | None:
        """Whom the labels are pulled to, where it is not the network itself."""
        decay, precision = self.recipe.teacher.labels.pulls.ema_decay, self.recipe.teacher.precision
        return SlowNetwork(self.model, decay, precision) if decay and rule.reads_answers else None

    def _choose(self, epoch: int) -> Estimator:
        """The estimator for the weights of today, judged on an epoch's first batches."""
        labels = self.recipe.teacher.labels
        first = self.batches(epoch, 0)
        batch = next(first)
        # A run of one step an epoch has no next batch in it: the first then stands in, for the probe only.
        meta = self.meta_batch(epoch * self.steps) if labels.meta == "held-out" else next(first, batch)
        estimator, report = choose_estimator(labels.estimator, self.training, batch, meta)
        self.listener(Notice(report))
        return estimator

    def _choose_again(self, epoch: int) -> None:
        """Kinks of ReLUs spoil finite differences at first, rounding later: another reach or estimator may do better.

        A choice that cannot be made, or that would need other records of the step before, leaves things as they are.
        """
        assert self.label_step is not None
        before = self.label_step.estimator
        try:
            after = self._choose(epoch)
        except BilevelError as error:
            self.listener(Notice(f"label gradient stays with {described(before)}: {error.message}"))
            return
        if (after.needs_state, after.needs_features) == (before.needs_state, before.needs_features):
            self.label_step.estimator = after

    @property
    def judged(self) -> torch.nn.Module:
        """See `Task`."""
        return self.model

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """See `Task`."""
        return training_batches(
            self.data,
            self._rows(epoch),
            batch_size=self.batch_size,
            epoch=epoch,
            seed=self.recipe.seed,
            views=self.recipe.views,
            numbered=False,
            device=self.device,
            start=start,
        )

    def _rows(self, epoch: int) -> Tensor:
        """Source indices that an epoch is trained on: as many in each, so that all epochs have as many steps.

        Where the meta images have joined, each epoch leaves others out.
        """
        labels = self.recipe.teacher.labels
        waiting = labels.meta_joins == "frozen" and not self._frozen(epoch)
        if self.joined is None or waiting:
            return self.rows
        order = torch.randperm(self.joined.numel(), generator=generator(self.recipe.seed, "joined", epoch))
        return self.joined[order[: self.rows.numel()]].sort().values

    def _frozen(self, epoch: int) -> bool:
        """Whether learned labels stay as they are in an epoch: the one of the moment, or before the labels settled."""
        return bool(self._settled) or epoch >= self.epochs - self.recipe.teacher.labels.freeze_epochs

    def meta_batch(self, number: int) -> Batch:
        """Some of the held-out images, augmented like training images but never mixed: what judges is one given label.

        A function of seed and step number.
        """
        views = self.recipe.views.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
        indices = self._meta_rows(number)
        batch = make_batch(self.data, indices, view=number, views=views, seed=self.recipe.seed, device=self.device)
        if self.data.source.decodes:
            self.data.source.prepare(self._meta_rows(number + self.recipe.teacher.labels.every))
        return batch

    def _meta_rows(self, number: int) -> Tensor:
        meta = self.data.splits.meta
        chosen = torch.randperm(meta.numel(), generator=generator(self.recipe.seed, "meta-batch", number))
        return meta[chosen[: self.recipe.teacher.labels.meta_batch_size]]

    def step(self, batch: Batch, epoch: int, number: int) -> dict[str, Tensor]:
        """See `Task`."""
        learn = False
        if isinstance(self.rule, Learned):
            learn = self._learns(self.rule, epoch, number)
            if number == epoch * self.steps and _probed_again(epoch) and not self._frozen(epoch):
                self._choose_again(epoch)
        return self._step(batch, number, learn=learn)

    def _learns(self, rule: Learned, epoch: int, number: int) -> bool:
        """Whether the labels of this step's batch are to be judged; sets how far they then go."""
        labels = self.recipe.teacher.labels
        first, end = labels.warmup_epochs, self.epochs - labels.freeze_epochs
        progress = min(max((number / self.steps - first) / (end - first), 0.0), 1.0)
        frozen = self._frozen(epoch)
        # 0 once they are frozen: the batch before may still wait to be judged.
        rule.set_factor(0.0 if frozen else step_factor(labels.step_schedule, progress))
        return first <= epoch and not frozen and number % labels.every == 0

    def _calibrate(self, rule: Learned) -> None:
        """Validation says how far the network is to be believed; by its given labels, as truth never teaches."""
        batch_size = self.recipe.export.batch_size
        batches = ordered_batches(self.data, self.data.splits.validation, batch_size=batch_size, device=self.device)
        logits, given = answered(self.model, batches, self.data.labels.given)
        rule.calibrate(logits.to(self.device).softmax(-1), given.to(self.device))

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """How many labels are right, how soft they are, how many moved; says when they have collapsed."""
        self.rule.end_epoch(epoch + 1, self.epochs)
        if isinstance(self.rule, Learned) and self.rule.calibrated:
            self._calibrate(self.rule)
        truth, train = self.recipe.data.truth_known, self.data.splits.train
        kept = self.rule.kept()
        metrics = today = label_metrics(self.data.labels, train, kept, truth_known=truth)
        if kept is not None and self.recipe.teacher.labels.average_epochs > 1:  # what is exported must decide nothing
            today = label_metrics(self.data.labels, train, replace(kept, averaged=kept.labels), truth_known=truth)
        learned = self.rule.metrics() if isinstance(self.rule, Learned) else {}
        fitted = learned if self.recipe.teacher.labels.pulls.learn_temperature else {}
        for problem in self._watch(today | fitted):
            self.listener(Notice(problem, warns=True))
        if self._settled.end_epoch(today.get("labels_moved", 0.0)):
            waited = "an epoch" if self._settled.patience == 1 else f"{self._settled.patience} epochs"
            ill = ", collapsed as they are" if self._watch.collapsed(today) else ""
            told = f"labels have settled: no more of them have moved for {waited}; they stay{ill}"
            self.listener(Notice(told, warns=bool(ill)))
        return metrics | learned

    def check(self) -> None:
        """See `Task`."""
        self._step.check()

    def state_dict(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "rule": self.rule.state_dict(),
            "step": self._step.state_dict(),
            "watch": self._watch.state_dict(),
            "settled": self._settled.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Task`."""
        self.rule.load_state_dict(state["rule"])
        self._step.load_state_dict(state["step"])
        self._watch.load_state_dict(state["watch"])
        if "settled" in state:  # a state of an earlier version has none, nor any patience
            self._settled.load_state_dict(state["settled"])


def _probed_again(epoch: int) -> bool:
    """After 1, 2, 4, 8, ... epochs: a float64 pass over a few images each time."""
    return epoch > 0 and epoch & (epoch - 1) == 0

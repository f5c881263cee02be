"""The rule that a recipe names, over the images that it is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.labels.confusions import Confusions
from distill.labels.fixed import Bootstrap, Smoothing, VirtualTeacher
from distill.labels.history import History
from distill.labels.learned import Learned
from distill.labels.online import OnlineSmoothing
from distill.labels.phases import Phases
from distill.labels.predicted import Elr, Joint, Pencil
from distill.labels.pulls import Pulls
from distill.labels.rules import LabelRule
from distill.labels.tables import LabelTable, Parametrisation, class_table, instance_table
from distill.labels.temperature import Temperature
from distill.recipe.labels import LEARNED_RULES, LabelsRecipe

SNAPSHOTS = 5  # of the labels, spread over the epochs


@dataclass(frozen=True)
class Images:
    """What a rule is made over.

    Args:
        rows: source indices of the training images, int64 [N].
        given: their labels, int64 [N].
        classes: C.
        epochs: of the training.
        device: where the tables live.
        known: source indices of images whose labels are not to be learned, int64 [K]; None: there are none.
    """

    rows: Tensor
    given: Tensor
    classes: int
    epochs: int
    device: torch.device
    known: Tensor | None = None

    @property
    def snapshot_epochs(self) -> tuple[int, ...]:
        """Epochs, counted from 1, after which labels are kept, to see how they moved."""
        return tuple(sorted({max(1, round(self.epochs * k / SNAPSHOTS)) for k in range(1, SNAPSHOTS + 1)}))


def label_rule(labels: LabelsRecipe, images: Images) -> LabelRule:
    """The rule of `[teacher.labels]`.

    Raises:
        UserError: settings that do not fit each other or the data.
    """
    if labels.rule in LEARNED_RULES:
        return _learned(labels, images)
    return _MADE[labels.rule](labels, images)


def _virtual_teacher(labels: LabelsRecipe, images: Images) -> LabelRule:
    return VirtualTeacher(images.classes, **labels.tf_kd.model_dump())


def _bootstrap(labels: LabelsRecipe, images: Images) -> LabelRule:
    phases = Phases(images.epochs, warmup_epochs=labels.warmup_epochs)
    return Bootstrap(images.classes, phases, **labels.bootstrap.model_dump())


def _online(labels: LabelsRecipe, images: Images) -> LabelRule:
    table = class_table(images.classes, _ANY_MASS, images.device)
    return OnlineSmoothing(table, _history(labels, images, table), given=labels.online_smoothing.given)


def _joint(labels: LabelsRecipe, images: Images) -> LabelRule:
    table = _instance_rows(images, _ANY_MASS, "projected")
    own = labels.joint
    return Joint(
        table,
        _phases(labels, images),
        _history(labels, images, table),
        balance=own.balance,
        entropy=own.entropy,
        window=own.history,
    )


def _pencil(labels: LabelsRecipe, images: Images) -> LabelRule:
    own = labels.pencil
    table = instance_table(
        images.rows,
        images.given,
        images.classes,
        own.mass,
        images.device,
        still=images.known,
        still_mass=labels.known_mass,
    )
    return Pencil(
        table,
        _phases(labels, images),
        _history(labels, images, table),
        step=own.step,
        compatibility=own.compatibility,
        entropy=own.entropy,
        backend=labels.backend,
    )


def _elr(labels: LabelsRecipe, images: Images) -> LabelRule:
    table = _instance_rows(images, _ANY_MASS, "projected")
    return Elr(table, Phases(images.epochs), _history(labels, images, table), **labels.elr.model_dump())


_MADE: dict[str, Callable[[LabelsRecipe, Images], LabelRule]] = {
    "onehot": lambda labels, images: Smoothing(images.classes, 0.0),
    "smoothing": lambda labels, images: Smoothing(images.classes, labels.smoothing),
    "online-smoothing": _online,
    "tf-kd": _virtual_teacher,
    "bootstrap": _bootstrap,
    "joint": _joint,
    "pencil": _pencil,
    "elr": _elr,
}
_ANY_MASS = 0.5  # of rows that the rule fills by itself


def _phases(labels: LabelsRecipe, images: Images) -> Phases:
    return Phases(images.epochs, warmup_epochs=labels.warmup_epochs, freeze_epochs=labels.freeze_epochs)


def _history(labels: LabelsRecipe, images: Images, table: LabelTable) -> History:
    return History(table.phi, average_epochs=labels.average_epochs, snapshot_epochs=images.snapshot_epochs)


def _instance_rows(images: Images, mass: float, parametrisation: Parametrisation) -> LabelTable:
    return instance_table(images.rows, images.given, images.classes, mass, images.device, parametrisation)


def _learned(labels: LabelsRecipe, images: Images) -> Learned:
    own = {"ema_decay", "learn_confusions", "learn_temperature", "calibrated"}
    pulls = Pulls(**labels.pulls.model_dump(exclude=own))
    confusions = temperature = None
    if labels.pulls.learn_confusions:
        confusions = Confusions(images.classes, labels.true_class_mass, images.device)
    if labels.pulls.learn_temperature or labels.pulls.calibrated:
        temperature = Temperature(images.device, calibrated=labels.pulls.calibrated)
    return Learned(
        _table(labels, images),
        step=labels.step,
        optimizer=labels.optimizer,
        momentum=labels.momentum,
        prior_step=labels.prior_step,
        pulls=pulls if pulls != Pulls() else None,
        confusions=confusions,
        temperature=temperature,
        divergence=labels.divergence,
        answer_entropy=labels.answer_entropy,
        backend=labels.backend,
        average_epochs=labels.average_epochs,
        snapshot_epochs=images.snapshot_epochs,
    )


def _table(labels: LabelsRecipe, images: Images) -> LabelTable:
    mass, parametrisation = labels.true_class_mass, labels.parametrisation
    if labels.rule == "class":
        return class_table(images.classes, mass, images.device, parametrisation)
    return instance_table(
        images.rows,
        images.given,
        images.classes,
        mass,
        images.device,
        parametrisation,
        with_prior=labels.rule == "class+instance",
        still=images.known,
        still_mass=labels.known_mass,
    )

"""The rule that a recipe names, over the images that it is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.errors import RecipeError
from distill.labels.fixed import Smoothing
from distill.labels.learned import Learned, Pulls
from distill.labels.rules import LabelRule
from distill.labels.tables import LabelTable, class_table, instance_table
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
    """

    rows: Tensor
    given: Tensor
    classes: int
    epochs: int
    device: torch.device

    @property
    def snapshot_epochs(self) -> tuple[int, ...]:
        """Epochs, counted from 1, after which labels are kept, to see how they moved."""
        return tuple(sorted({max(1, round(self.epochs * k / SNAPSHOTS)) for k in range(1, SNAPSHOTS + 1)}))


def label_rule(labels: LabelsRecipe, images: Images) -> LabelRule:
    """The rule of `[teacher.labels]`.

    Raises:
        UserError: settings that do not fit each other or the data.
    """
    if labels.rule == "onehot":
        return Smoothing(images.classes, 0.0)
    if labels.rule == "smoothing":
        return Smoothing(images.classes, labels.smoothing)
    if labels.rule in LEARNED_RULES:
        return _learned(labels, images)
    raise RecipeError(f"[teacher.labels] rule: {labels.rule!r} is not built yet")


def _learned(labels: LabelsRecipe, images: Images) -> Learned:
    pulls = Pulls(**labels.pulls.model_dump())
    return Learned(
        _table(labels, images),
        step=labels.step,
        optimizer=labels.optimizer,
        momentum=labels.momentum,
        prior_step=labels.prior_step,
        pulls=pulls if pulls != Pulls() else None,
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
    )

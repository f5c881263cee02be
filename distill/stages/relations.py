"""Do the classes that learned labels hold alike get confused by another network? Labels and network never met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from distill.data.loader import ImageData, open_data, ordered_batches
from distill.errors import RunError
from distill.recipe.schema import Recipe
from distill.report.label_figures import relation_chart
from distill.report.label_report import RelationReport
from distill.report.labels import Table, class_means
from distill.report.relations import Matrix, confusion_matrix, relation
from distill.report.runs import Run
from distill.stages.common import as_teacher_sees
from distill.stages.finished import load_teacher, teacher_weights
from distill.stages.label_data import labels_of, no_learned_labels
from distill.training.device import prepare_device
from distill.training.events import Listener, files_read

PICTURE = "label_relations.png"


def relate(run: Run, recipe: Recipe, other: Run, listener: Listener, folder: Path) -> RelationReport:
    """Compares the class means of learned labels with the confusion matrix of another run's teacher on its test part.

    Args:
        run: of the labels.
        recipe: the run's, perhaps with another `data.root`.
        other: a finished teacher of the same classes, trained with another seed: one with this seed has seen the same
            wrong labels in the same order.
        listener: told how many files of a folder were read.
        folder: where the picture goes.

    Raises:
        RunError: one has no learned labels, the other has the same seed or other classes.
    """
    labels = labels_of(run, recipe)
    if labels is None:
        raise no_learned_labels(run)
    if other.record.seed == run.record.seed:
        raise RunError(
            f"{other.folder}: was trained with seed {other.record.seed}, as {run.folder} was, so it is not independent",
            cure="train one with another seed: --set seed=1 --set name=NAME.",
        )
    theirs = other.recipe.model_copy(update={"data": other.recipe.data.model_copy(update={"root": recipe.data.root})})
    data = open_data(theirs, progress=files_read(listener))
    if len(data.source.classes) != labels.averaged.shape[1]:
        raise RunError(
            f"{other.folder}: has {len(data.source.classes)} classes, expected {labels.averaged.shape[1]}",
            cure="name a teacher of the same data.",
        )
    device = prepare_device(theirs)
    weights, _ = teacher_weights(other, theirs, data)
    network = load_teacher(theirs, data, weights, device)
    confusion = confusion_on_test(network, as_teacher_sees(data, theirs), theirs.export.batch_size, device)
    means = learned_means(labels.averaged, labels.given, labels.kind)
    found = relation(means, confusion)
    picture = None
    if found.correlation is not None:
        picture = str(folder / PICTURE)
        relation_chart(folder / PICTURE, means, confusion, data.source.classes, found)
    return RelationReport(
        str(other.folder), found.correlation, found.p_value, found.pairs, picture=picture, missing=found.missing
    )


def learned_means(averaged: Tensor, given: Tensor, kind: str) -> Table:
    """Mean label of each given class, [C, C], from a table [N, C] and its given labels int64 [N]."""
    if kind == "class":
        return averaged.numpy()
    return class_means(averaged.numpy(), given.numpy(), np.arange(averaged.shape[1]))


@torch.no_grad()
def confusion_on_test(model: nn.Module, data: ImageData, batch_size: int, device: torch.device) -> Matrix:
    """Share of each true class's test images that a network in eval mode takes for each class, [C, C].

    Args:
        model: the network.
        data: as it sees them.
        batch_size: images at a time.
        device: the network's.
    """
    rows = data.splits.test
    batches = ordered_batches(data, rows, batch_size=batch_size, device=device)
    predicted = torch.cat([model(batch.images).argmax(-1).cpu() for batch in batches])
    return confusion_matrix(data.labels.true[rows].numpy(), predicted.numpy(), len(data.source.classes))

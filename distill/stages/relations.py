"""Do the classes that learned labels hold alike get confused by another network? Labels and network never met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from distill.data.loader import ImageData, open_data, ordered_batches
from distill.data.sources import open_source
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
    theirs = _where_the_data_are(other.recipe, recipe)
    data = open_data(theirs, progress=files_read(listener))
    same = theirs.data.source == recipe.data.source  # from the same place, then
    own = data.classes if same else open_source(recipe.data, progress=files_read(listener)).classes
    if (reason := _other_classes(data.classes, own, labels.averaged.shape[1])) is not None:
        raise RunError(f"{other.folder}: {reason}", cure="name a teacher of the same data.")
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


def _where_the_data_are(theirs: Recipe, ours: Recipe) -> Recipe:
    """The other recipe, looking where ours does: `--set data.root` may have led to data that were moved.

    Not one of another source, whose files are elsewhere.
    """
    if theirs.data.source != ours.data.source:
        return theirs
    return theirs.model_copy(update={"data": theirs.data.model_copy(update={"root": ours.data.root})})


def _other_classes(found: tuple[str, ...], names: tuple[str, ...], count: int) -> str | None:
    """What is wrong with classes that are not those of the labels; ten digits and ten clothes are as many, and unlike.

    Args:
        found: names of the other network's classes.
        names: those of the labels' data.
        count: of the labels' classes.
    """
    if len(found) != count:
        return f"has {len(found)} classes, expected {count}"
    for number, (theirs, ours) in enumerate(zip(found, names, strict=False)):
        if theirs != ours:
            return f"has other classes: class {number} is {theirs!r}, expected {ours!r} as the labels have it"
    return None


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

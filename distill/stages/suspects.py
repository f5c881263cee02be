"""Which training labels the learned labels disagree with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from distill.data.loader import open_data
from distill.report.figures import suspected_errors
from distill.report.runs import Run
from distill.store.labels import LearnedLabels, read_labels

SHOWN = 24


def draw_suspects(teacher: Run) -> Path | None:
    """A contact sheet of the surest suspected label errors, in the run's figures folder.

    Returns:
        The PNG; None when the teacher has no labels of its own for each image.
    """
    if teacher.recipe.teacher.labels.rule != "instance":
        return None
    labels = read_labels(teacher.folder / "labels")
    data = open_data(teacher.recipe)
    shown = suspects(labels)[:SHOWN]
    rows = labels.indices[shown]
    path = teacher.folder / "figures" / "suspected_errors.png"
    suspected_errors(
        path,
        images=data.source.fetch(rows).permute(0, 2, 3, 1).numpy(),
        given=[data.classes[c] for c in labels.given[shown].tolist()],
        learned=[data.classes[c] for c in labels.argmax[shown].tolist()],
        true=[data.classes[c] for c in data.labels.true[rows].tolist()],
        confidence=labels.confidence[shown].tolist(),
    )
    return path


def suspects(labels: LearnedLabels) -> Tensor:
    """Rows whose learned label is not the given one, the surest first: int64 [K].

    Sure is a large gap between the learned label's probability and the given one's.
    """
    given = labels.averaged.gather(1, labels.given.unsqueeze(1)).squeeze(1)
    gap = labels.confidence - given
    rows = torch.nonzero(labels.suspected).squeeze(1)
    order = torch.argsort(gap[rows], descending=True, stable=True)
    return rows[order]

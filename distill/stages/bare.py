"""Classes that a part of the data has no image of: `distill check` notes them, and so does a teacher that begins."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from distill.data.loader import ImageData
from distill.recipe.labels import LEARNED_RULES
from distill.recipe.schema import Recipe


def bare_classes(recipe: Recipe, data: ImageData) -> Iterator[str]:
    """A line for each part that lacks classes: the training, validation and test parts, and the judges of labels.

    Args:
        recipe: whose labels may be judged by the meta part; else that is training data like the rest.
        data: its images.
    """
    parts = data.splits
    labels = recipe.teacher.labels
    if labels.rule in LEARNED_RULES and labels.meta == "held-out" and (bare := _without(parts.meta, data)):
        found = f"found {parts.meta.numel()} images to judge the labels"
        yield f"[data] meta: {found}, and {bare} of {data.num_classes} classes have none among them"
    if missing := _without(parts.train, data):
        yield f"[data]: {missing} of {data.num_classes} classes have no training image, so that nothing teaches them"
    for name in ("validation", "test"):
        if missing := _without(getattr(parts, name), data):
            yield f"[data]: {missing} of {data.num_classes} classes have no {name} image; its numbers are of the others"


def _without(rows: Tensor, data: ImageData) -> int:
    """How many classes no label of these images [N] names; 0 where there are no images at all."""
    return data.num_classes - len(set(data.labels.given[rows].tolist())) if rows.numel() else 0

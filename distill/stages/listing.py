"""What a recipe can name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from distill.recipe.load import describe_fields
from distill.recipe.schema import LabelRule, LossRecipe

_RULES = {
    "onehot": "fixed: all mass on the given class",
    "smoothing": "fixed: eps/C on every class, as in timm",
    "class": "learned: one label for each class (arXiv 2009.09496)",
    "instance": "learned: one label for each training image (arXiv 2009.09496)",
}
_LOSSES = {
    "kd": "T^2 KL(teacher || student) and cross-entropy (Hinton 2015)",
    "ce": "cross-entropy with the given labels only: the control",
}


def listing(kind: Literal["models", "losses", "labels", "data", "fields"], pattern: str) -> Iterable[str]:
    """Lines to print, one entry each."""
    if kind == "models":
        from distill.models.zoo import list_models

        return list_models(pattern)
    if kind == "data":
        from distill.data.sources import list_sources

        return [f"{name:16}{sentence}" for name, sentence in list_sources()]
    if kind == "losses":
        names = get_args(LossRecipe.model_fields["name"].annotation)
        return [f"{name:16}{_LOSSES[name]}" for name in names]
    if kind == "labels":
        return [f"{name:16}{_RULES[name]}" for name in get_args(LabelRule)]
    return _fields()


def _fields() -> list[str]:
    """A line for each field, in columns: name, default, what it takes, sentence."""
    cells = [("FIELD", "DEFAULT", "TAKES", "")]
    for field in describe_fields():
        takes = f"{field.type}, {field.range}" if field.range else field.type
        cells.append((field.name, field.default, takes, field.sentence))
    # A few long entries push their own sentence aside, and nobody else's.
    widths = [min(max(len(row[column]) for row in cells), widest) for column, widest in enumerate((40, 12, 34))]
    lines = []
    for row in cells:
        columns = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*columns, row[3]]).rstrip())
    return lines

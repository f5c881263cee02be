"""What a recipe can name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from distill.recipe.labels import RULES
from distill.recipe.load import describe_fields
from distill.recipe.losses import CATALOGUE, LossInfo


def listing(kind: Literal["models", "losses", "labels", "data", "fields"], pattern: str) -> Iterable[str]:
    """Lines to print, one entry each."""
    if kind == "models":
        from distill.models.zoo import list_models

        return list_models(pattern)
    if kind == "data":
        from distill.data.sources import list_sources

        return [f"{name:16}{sentence}" for name, sentence in list_sources()]
    if kind == "losses":
        return [f"{name:12}{_loss(info)}" for name, info in CATALOGUE.items()]
    if kind == "labels":
        return [f"{name:18}{sentence}" for name, sentence in RULES.items()]
    return _fields()


def _loss(info: LossInfo) -> str:
    """The sentence, the weights, the settings and what a store has to hold for it."""
    parts = [f"cross-entropy {info.hard:g}, this {info.soft:g}"]
    parts += [f"{name} {value}" for name, value in info.reads.items() if name != "standardise"]
    parts += [f"needs the teacher's {need}" for need in sorted(info.needs - {"logits"})]
    return f"{info.sentence}; {', '.join(parts)}"


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

"""What a recipe can name."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal

from distill.errors import RecipeError
from distill.recipe.labels import RULES
from distill.recipe.load import describe_fields
from distill.recipe.losses import CATALOGUE, LossInfo


def listing(kind: Literal["models", "losses", "labels", "data", "fields"], pattern: str) -> Iterable[str]:
    """Lines to print, one entry each, of those whose names match a shell pattern.

    Raises:
        RecipeError: no name does.
    """
    if not (lines := _lines(kind, pattern)):
        raise RecipeError(
            f"list {kind}: found no name that matches {pattern!r}",
            cure=f"`distill list {kind}` prints all; * stands for anything: '*{pattern.strip('*')}*'",
        )
    return lines


def _lines(kind: Literal["models", "losses", "labels", "data", "fields"], pattern: str) -> list[str]:
    if kind == "models":
        from distill.models.zoo import list_models

        return list_models(pattern)
    if kind == "fields":
        return _fields(pattern)
    rows: Iterable[tuple[str, str]] = RULES.items()
    if kind == "data":
        from distill.data.sources import list_sources

        rows = list_sources()
    elif kind == "losses":
        rows = [(name, _loss(info)) for name, info in CATALOGUE.items()]
    width = {"data": 16, "losses": 12, "labels": 18}[kind]
    return [f"{name:{width}}{sentence}" for name, sentence in rows if fnmatchcase(name, pattern)]


def _loss(info: LossInfo) -> str:
    """The sentence, the weights, the settings and what a store has to hold for it."""
    parts = [f"cross-entropy {info.hard:g}, this {info.soft:g}"]
    parts += [f"{name} {value}" for name, value in info.reads.items() if name != "standardise"]
    parts += [f"needs the teacher's {need}" for need in sorted(info.needs - {"logits"})]
    return f"{info.sentence}; {', '.join(parts)}"


def _fields(pattern: str) -> list[str]:
    """A line for each field, in columns: name, default, what it takes, sentence; none where no name matches."""
    cells = [("FIELD", "DEFAULT", "TAKES", "")]
    for field in (field for field in describe_fields() if fnmatchcase(field.name, pattern)):
        takes = f"{field.type}, {field.range}" if field.range else field.type
        cells.append((field.name, field.default, takes, field.sentence))
    if len(cells) == 1:
        return []
    # A few long entries push their own sentence aside, and nobody else's.
    widths = [min(max(len(row[column]) for row in cells), widest) for column, widest in enumerate((40, 12, 34))]
    lines = []
    for row in cells:
        columns = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*columns, row[3]]).rstrip())
    return lines

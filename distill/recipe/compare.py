"""`[compare]`: which teachers and students are compared. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from distill.recipe.base import Table
from distill.recipe.labels import RULES, LabelRule
from distill.recipe.losses import LossName
from distill.recipe.ranges import PositiveShare, Temperature

RULE = "teacher.labels.rule"  # the field that teachers of a comparison usually differ in


class CompareRecipe(Table):
    """Teachers x students x losses x temperatures x weights x seeds. All else in the recipe is the same for each."""

    teachers: Annotated[tuple[LabelRule, ...], Field(strict=False, min_length=1)] = Field(
        default=("onehot", "smoothing", "instance"), description="Label rules, one teacher each."
    )
    arms: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] = Field(
        default_factory=dict,
        description="In place of teachers: a name each, and what differs, as --set takes it: "
        'small = ["data.train=1000"].',
    )
    reference: str = Field(default="", description="What the others are compared with; empty: the first.")
    pairs: Literal["all", "reference"] = Field(
        default="all",
        description="Of arms, about which something is claimed; reference: only those with it, so that Holm's "
        "correction is over fewer. To be decided before results are seen.",
    )
    students: bool = Field(default=True, description="Train students too; false: the teachers alone are compared.")
    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = Field(
        default=(0,), description="Every teacher and student is trained once with each."
    )
    losses: Annotated[tuple[LossName, ...], Field(strict=False)] = Field(
        default=(), description="Student losses; validation chooses one per teacher. Empty: the student's own."
    )
    temperatures: Annotated[tuple[Temperature, ...], Field(strict=False)] = Field(
        default=(), description="Student temperatures; validation chooses one per teacher. Empty: the student's own."
    )
    weights: Annotated[tuple[PositiveShare, ...], Field(strict=False)] = Field(
        default=(),
        description="Shares w of a loss that asks a teacher, beside 1 - w of the cross-entropy; validation chooses "
        "one per teacher. Empty: the student's own.",
    )
    controls: bool = Field(
        default=True,
        description="Train a student alone, one with label smoothing, and those of an untrained teacher too.",
    )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the teachers that are compared, in order: the arms, or the label rules."""
        return tuple(self.arms) or self.teachers

    @property
    def first(self) -> str:
        """The name of the teacher that the others are compared with."""
        return self.reference or self.names[0]

    def assignments(self, name: str) -> tuple[str, ...]:
        """What makes a teacher of that name, as --set would take it."""
        return self.arms[name] if self.arms else (f"{RULE}={name}",)

    def rules(self, own: LabelRule) -> tuple[LabelRule, ...]:
        """The label rules that are compared, each once.

        Args:
            own: the recipe's own, which an arm has that assigns none.
        """
        found = (assigned_rule(self.assignments(name)) or own for name in self.names)
        return tuple(dict.fromkeys(found))


def assigned_rule(assignments: Sequence[str]) -> LabelRule | None:
    """The label rule that assignments give, the last one counting; None where they give none that there is."""
    pairs = (text.partition("=") for text in assignments)
    values = [value.strip().strip("\"'") for key, _, value in pairs if key.replace(" ", "") == RULE]
    return next((rule for rule in RULES if values and rule == values[-1]), None)

"""The cells of a comparison: what is trained, in which order, and what has to be there before it. No torch, no disk.

Cells are numbered from 0, seed by seed, so that any first part of them says as much as it can: all arms at one seed
before the next seed. A teacher stands before its students.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final, Literal, TypeAlias

from distill.errors import RecipeError
from distill.recipe.labels import LabelsRecipe
from distill.recipe.load import override
from distill.recipe.losses import CATALOGUE, LossName, LossRecipe
from distill.recipe.schema import OptimizerRecipe, Recipe

UNTRAINED: Final = "untrained"  # the control whose teacher has learned nothing
ALONE: Final = "alone"  # a control: a student that asks no teacher
SMOOTHING: Final = "smoothing"  # the same, with smoothed labels
Control: TypeAlias = Literal["", "alone", "smoothing", "untrained"]


@dataclass(frozen=True)
class Cell:
    """One training: a teacher, or a student of a teacher of the grid."""

    number: int
    kind: Literal["teacher", "student"]
    arm: str
    seed: int
    recipe: Recipe  # a student's, too, names its teacher's run
    loss: str = ""  # of a student
    temperature: float | None = None  # of a student; None: its loss's own
    weight: float | None = None  # of a student's loss, a share beside the cross-entropy's; None: its loss's own
    control: Control = ""
    needs: int | None = None  # the number of a student's teacher
    exports: bool = True  # of a teacher: whether students ask for its logits

    @property
    def key(self) -> str:
        """`instance-s0`, `instance-s0-kd-T4-w0.5`: stays the same when a grid grows, as its number does not."""
        own = run_name(self.arm, self.seed)
        if self.kind == "teacher":
            return own
        at = "" if self.temperature is None else f"-T{shortest(self.temperature)}"
        return f"{own}-{self.loss}{at}" + ("" if self.weight is None else f"-w{shortest(self.weight)}")

    @property
    def teacher_folder(self) -> Path:
        """The run folder of the teacher that this cell is, or asks."""
        return Path(self.recipe.checkpoints) / self.recipe.name

    def __str__(self) -> str:
        who = f"teacher {self.arm}" if self.kind == "teacher" else f"student of {self.arm}, {self.loss}"
        at = "" if self.temperature is None else f", T {shortest(self.temperature)}"
        at += "" if self.weight is None else f", w {shortest(self.weight)}"
        return f"{who}{at}, seed {self.seed}"


def shortest(number: float) -> str:
    """Decimals that no other number has, without a needless `.0`."""
    return repr(float(number)).removesuffix(".0")


def comparison_folder(recipe: Recipe) -> Path:
    """Where the runs of a comparison lie."""
    return Path(recipe.checkpoints) / f"{recipe.name}-compare"


def run_name(arm: str, seed: int) -> str:
    """Of a teacher's run."""
    return f"{arm.replace('+', '-')}-s{seed}"  # a run's name has no plus sign


def grid(recipe: Recipe) -> tuple[Cell, ...]:
    """All cells of `[compare]`, in order.

    Raises:
        RecipeError: an arm's assignments do not fit, or controls want a reference that is not compared;
            `check_recipe` says so earlier and better.
    """
    cells: list[Cell] = []
    compare = recipe.compare
    arms = {name: arm_recipe(recipe, name) for name in compare.names}
    if compare.students and compare.controls and compare.first not in arms:
        raise RecipeError(f"[compare] reference: found {json.dumps(compare.reference)}, which is not compared")
    for seed in compare.seeds:
        for name, own in arms.items():
            cells += _block(len(cells), at_seed(recipe, own, name, seed), name, seed)
        if compare.students and compare.controls:
            _add_students_alone(cells, at_seed(recipe, arms[compare.first], compare.first, seed), compare.first, seed)
            own = _untrained(arms[compare.first])
            cells += _block(len(cells), at_seed(recipe, own, UNTRAINED, seed), UNTRAINED, seed, UNTRAINED)
    return tuple(cells)


def arm_recipe(recipe: Recipe, name: str) -> Recipe:
    """The recipe as one arm changes it.

    Raises:
        RecipeError: an assignment does not fit.
    """
    return override(recipe, recipe.compare.assignments(name))


def at_seed(recipe: Recipe, own: Recipe, name: str, seed: int) -> Recipe:
    """An arm's own recipe at one seed, in the folder of the comparison `recipe`."""
    folder = str(comparison_folder(recipe))
    own = own.model_copy(update={"name": run_name(name, seed), "seed": seed, "checkpoints": folder})
    asks = own.compare.students and (own.compare.temperatures or own.compare.losses)
    if asks and own.export.format == "topk":  # which not every loss can read, at every temperature
        return with_loss(own, *next(_combinations(own)))
    return own


def with_loss(recipe: Recipe, name: LossName, temperature: float | None, weight: float | None = None) -> Recipe:
    """With another loss of the student's, which starts from its own settings, at this temperature.

    Further losses (`plus`) stay beside every loss that asks a teacher; those that ask none are controls.

    Args:
        recipe: to be changed.
        name: of the loss.
        temperature: None: as it is.
        weight: the loss's share; the rest is the cross-entropy's. None: both as they are.
    """
    loss = recipe.student.loss
    if name != loss.name:
        plus = loss.plus if CATALOGUE[name].needs else {}
        loss = LossRecipe(name=name, plus=plus, allow_topk=loss.allow_topk)
    if temperature is not None:
        loss = loss.model_copy(update={"temperature": temperature})
    if weight is not None:
        # Rounded, so that 0.9 leaves 0.1 and makes the student, and the digest, that kd's own weights make.
        loss = loss.model_copy(update={"soft_weight": weight, "hard_weight": round(1 - weight, 12)})
    return recipe.model_copy(update={"student": recipe.student.model_copy(update={"loss": loss})})


def takes_temperature(loss: LossName) -> bool:
    """Whether students of a grid learn with this loss at its temperatures; one that asks no teacher keeps its own."""
    return bool(CATALOGUE[loss].needs) and "temperature" in CATALOGUE[loss].reads


def _combinations(recipe: Recipe) -> Iterator[tuple[LossName, float | None, float | None]]:
    """Every loss, temperature and weight of the grid; a loss that reads none of these comes with None for it."""
    compare = recipe.compare
    for loss in compare.losses or (recipe.student.loss.name,):
        info = CATALOGUE[loss]
        temperatures = (compare.temperatures if takes_temperature(loss) else ()) or (None,)
        weights = (compare.weights if info.takes_share else ()) or (None,)
        for temperature, weight in product(temperatures, weights):
            yield loss, temperature, weight


def _block(number: int, own: Recipe, arm: str, seed: int, control: Control = "") -> list[Cell]:
    """A teacher and all its students, numbered from `number` on."""
    students = own.compare.students
    cells = [Cell(number, "teacher", arm, seed, own, control=control, exports=students)]
    for each in _combinations(own) if students else ():
        student = with_loss(own, *each)
        cells.append(Cell(number + len(cells), "student", arm, seed, student, *each, control, needs=number))
    return cells


def _add_students_alone(cells: list[Cell], own: Recipe, arm: str, seed: int) -> None:
    """Appends students that ask no teacher, beside those of the reference arm, where the grid has none like them."""
    teacher = next(cell.number for cell in cells if (cell.kind, cell.arm, cell.seed) == ("teacher", arm, seed))
    there = {cell.loss for cell in cells if (cell.arm, cell.seed) == (arm, seed)}
    alone = {"online": False, "more_teachers": (), "teacher_weights": (), "combine": "logits"}
    own = own.model_copy(update={"student": own.student.model_copy(update=alone)})
    losses: tuple[tuple[LossName, Control], ...] = (("ce", ALONE), ("smoothing", SMOOTHING))
    for loss, control in losses:
        if loss not in there:
            student = with_loss(own, loss, None)
            cells.append(Cell(len(cells), "student", arm, seed, student, loss, control=control, needs=teacher))


def _untrained(reference: Recipe) -> Recipe:
    """The reference arm with a teacher that learns nothing, and kd students.

    What only training reads is left at its defaults: it would be said to fit no training of 0 epochs. Labels that
    nothing has learned teach nobody.
    """
    untrained = {"epochs": 0, "labels": LabelsRecipe(), "optimizer": OptimizerRecipe()}
    loss = reference.student.loss
    plus = {name: term for name, term in loss.plus.items() if name != "labels"}
    student = {"loss": loss.model_copy(update={"plus": plus})}
    own = reference.model_copy(
        update={
            "teacher": reference.teacher.model_copy(update=untrained),
            "student": reference.student.model_copy(update=student),
            "compare": reference.compare.model_copy(update={"losses": ("kd",)}),
        }
    )
    return with_loss(own, *next(_combinations(own)))

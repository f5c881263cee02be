"""Whether every arm of a comparison can be run, asked before its first cell is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel

from distill.errors import UserError
from distill.labels.tables import check_start
from distill.models import zoo
from distill.models.zoo import Fit
from distill.recipe.digest import digest
from distill.recipe.fields import key
from distill.recipe.grid import Cell, with_loss
from distill.recipe.labels import LEARNED_RULES
from distill.recipe.losses import needs
from distill.recipe.schema import Recipe, StageRecipe
from distill.report.runs import RECORD
from distill.stages.trial import (
    KNOWN,
    Shape,
    opened,
    try_export,
    try_last_layer,
    try_more_teachers,
    try_network,
    try_online,
    try_optimizer,
    try_student_network,
)

_Trial: TypeAlias = Callable[[], None]


def arm_place(cell: Cell) -> str:
    """`[compare.arms] small: `, where a cell's recipe is written; "" where the comparison has no arms."""
    compare = cell.recipe.compare
    # The control's recipe is that of the reference.
    return f"[compare.arms] {key(cell.arm if cell.arm in compare.arms else compare.first)}: " if compare.arms else ""


@dataclass(frozen=True)
class Tried:
    """That a recipe's own parts were tried.

    Attributes:
        shape: what its data are like; None where that is not known.
        told: the messages of what was wrong.
        fit: what its networks were fitted by, see `zoo.fit_once`.
    """

    shape: Shape | None
    told: frozenset[str]
    fit: Fit


def grid_errors(recipe: Recipe, cells: Sequence[Cell], own: Tried | None = None) -> Iterator[UserError]:
    """What keeps cells of a comparison from being run; what an arm alone asks for comes with the arm's name.

    Cells of the first seed are looked at, as others ask for nothing else, and what several ask for is tried once.

    Args:
        recipe: that of the comparison.
        cells: its grid.
        own: what was tried of it; None: nothing was.
    """
    shapes = {} if own is None else {_data_part(recipe): own.shape}
    tried = set() if own is None else set(trials(recipe, own.shape))
    told = set() if own is None else set(own.told)
    fit = zoo.fit_once() if own is None else own.fit
    coming: set[Path] = set()
    for cell in (cell for cell in cells if cell.seed == recipe.compare.seeds[0]):
        for common, error in _cell_errors(cell, recipe, shapes, tried, coming, fit):
            if error.message not in told:  # as of data that are missing, however many arms divide them
                told.add(error.message)
                place = "" if common else arm_place(cell)
                yield type(error)(f"{place}{error.message}", cure=error.cure)
        coming.add(cell.teacher_folder)


def _cell_errors(
    cell: Cell, recipe: Recipe, shapes: dict[str, Shape | None], tried: set[str], coming: set[Path], fit: Fit
) -> Iterator[tuple[bool, UserError]]:
    """Errors of a cell's parts that were not tried yet, and whether these are the recipe's own; notes what it tries."""
    own, data = _data_part(recipe), _data_part(cell.recipe)
    if data not in shapes:
        shapes[data] = KNOWN.get(cell.recipe.data.source)
        try:
            shapes[data] = opened(cell.recipe)
        except UserError as error:
            yield data == own, error
    # What a run that was begun started from was there; it is not asked for again.
    weights = not (cell.teacher_folder / RECORD).exists()
    asked: dict[str, Any] = {"students": cell.kind == "student", "weights": weights, "coming": coming, "fit": fit}
    for part, trial in trials(cell.recipe, shapes[data], **asked).items():
        if part in tried:
            continue
        tried.add(part)
        try:
            trial()
        except UserError as error:
            losses = recipe.compare.losses or (recipe.student.loss.name,)
            common = (trials(with_loss(recipe, loss, None), shapes.get(own)) for loss in losses)
            yield any(part in each for each in common), error


def _data_part(recipe: Recipe) -> str:
    """What decides whether the data can be opened; of two recipes that ask for the same, the same."""
    return digest({"data": recipe.data.model_dump(mode="json"), "padding": recipe.views.crop_padding})


def trials(
    recipe: Recipe,
    shape: Shape | None,
    *,
    students: bool = True,
    weights: bool = True,
    coming: Collection[Path] = (),
    fit: Fit | None = None,
) -> dict[str, _Trial]:
    """What is to be tried of a recipe besides its data, by a digest of what each trial looks at."""
    teacher, student, labels = recipe.teacher, recipe.student, recipe.teacher.labels
    parts: list[tuple[Any, _Trial]] = [
        (_network(teacher, shape, weights), partial(try_network, "teacher", teacher, shape, weights=weights, fit=fit)),
        (["teacher.optimizer", _plain(teacher.optimizer)], partial(try_optimizer, "teacher", teacher)),
    ]
    if shape is not None and labels.rule in LEARNED_RULES:
        start = (shape[2], labels.true_class_mass, labels.parametrisation)
        parts.append((["start", *start], partial(check_start, *start)))
        if labels.estimator == "last-layer":
            named = _network(teacher, shape, weights=False)
            parts.append((["last layer", named], partial(try_last_layer, teacher, shape, fit)))
    inside = sorted(needs(student.loss) - {"logits", "labels"})
    if shape is not None and students:
        stored = [recipe.export.k, recipe.export.features, recipe.export.maps]
        named = _network(teacher, shape, weights=False)
        parts.append((["export", *stored, named], partial(try_export, recipe, shape, fit)))
        if student.online:
            parts.append((["online", *inside, named], partial(try_online, recipe, shape, fit)))
    if students:
        chosen_by = None if student.model else _network(teacher, shape, weights=False)
        parts += [
            (
                [_network(student, shape, weights), chosen_by, inside],
                partial(try_student_network, recipe, shape, weights=weights, fit=fit),
            ),
            (["student.optimizer", _plain(student.optimizer)], partial(try_optimizer, "student", student)),
        ]
    if students and student.more_teachers:
        place = [recipe.checkpoints, recipe.name]
        parts.append((["more", *place, student.more_teachers], partial(try_more_teachers, recipe, coming)))
    return {digest(part): trial for part, trial in parts}


def _network(stage: StageRecipe, shape: Shape | None, weights: bool) -> Any:
    """What decides whether a stage's network can be built."""
    fields = _plain(stage)
    named = {name: fields.get(name) for name in ("model", "model_args", "imported")}
    return {**named, "pretrained": stage.pretrained and weights, "shape": shape}


def _plain(table: BaseModel) -> dict[str, Any]:
    return table.model_dump(mode="json")

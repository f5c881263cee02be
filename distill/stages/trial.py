"""Whether what a recipe names can be had, asked before anything is trained: networks, optimisers, data, teachers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from pydantic import BaseModel

from distill.data.loader import open_data
from distill.errors import UserError
from distill.labels.tables import check_start
from distill.models import zoo
from distill.recipe.checks import check_recipe
from distill.recipe.digest import digest
from distill.recipe.fields import key
from distill.recipe.grid import Cell, grid
from distill.recipe.labels import LEARNED_RULES
from distill.recipe.schema import Recipe, StageRecipe, StudentRecipe, TeacherRecipe
from distill.report.runs import RECORD
from distill.stages.common import fit_model
from distill.stages.export import check_k
from distill.stages.settling import settle_student
from distill.stages.student import more_teachers
from distill.training.schedule import build_optimizer

Shape: TypeAlias = tuple[int, int, int]  # channels, side, classes
_Trial: TypeAlias = Callable[[], None]

# Of the sources whose files may be missing: the networks can be tried all the same.
KNOWN: Final[Mapping[str, Shape]] = {
    "digits": (1, 8, 10),
    "fashion-mnist": (1, 28, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
}


@contextmanager
def placed(place: str) -> Iterator[None]:
    """Puts a place before the message of an error that the user can mend."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{place}{error.message}", cure=error.cure) from error


def arm_place(cell: Cell) -> str:
    """`[compare.arms] small: `, where a cell's recipe is written; "" where the comparison has no arms."""
    compare = cell.recipe.compare
    # The control's recipe is that of the reference.
    return f"[compare.arms] {key(cell.arm if cell.arm in compare.arms else compare.first)}: " if compare.arms else ""


def refuse_student(recipe: Recipe) -> None:
    """Refuses a recipe whose student could not be trained, as far as that shows before its teacher is.

    Raises:
        UserError: the recipe breaks a rule; the data, the student's network, optimiser or other teachers cannot be had.
    """
    check_recipe(recipe, recipe.name)
    shape, begun = _opened(recipe), (Path(recipe.checkpoints) / recipe.name / RECORD).exists()
    try_student_network(recipe, shape, weights=not begun)  # a finished student asks no more for what it started from
    try_optimizer("student", recipe.student)
    try_more_teachers(recipe)


def try_network(table: str, stage: StageRecipe, shape: Shape | None, *, weights: bool = True) -> None:
    """Tries whether a stage's network can be built.

    Args:
        table: the recipe's, for the error.
        stage: what it holds.
        shape: of the images; None: it is not known, and only the name is looked up.
        weights: whether pretrained weights are looked for, too; none are downloaded.

    Raises:
        ModelError: it cannot be built, or weights cannot be had.
    """
    if shape is None:
        if stage.model and not _imported(stage):
            with placed(f"[{table}] model: "):
                zoo.check_name(stage.model, stage.model_args)
        return
    channels, side, classes = shape
    spec = fit_model(stage, table, channels=channels, image_size=side, classes=classes)
    if weights and stage.pretrained:
        with placed(f"[{table}] pretrained: "):
            zoo.check_pretrained(spec)


def try_student_network(recipe: Recipe, shape: Shape | None, *, weights: bool = True) -> None:
    """`try_network` of the student, which is chosen first where the recipe names none.

    Raises:
        ModelError: see there; also of the teacher that it is to be smaller than.
    """
    if shape is not None:
        channels, side, classes = shape
        recipe = settle_student(recipe, channels=channels, image_size=side, classes=classes).recipe
    try_network("student", recipe.student, shape, weights=weights)


def try_optimizer(table: str, stage: TeacherRecipe | StudentRecipe) -> None:
    """Tries whether a stage's optimiser can be built.

    Raises:
        RecipeError: it cannot.
    """
    # Names and settings do not depend on the model, so a small one will do.
    build_optimizer(torch.nn.Linear(1, 1), stage.optimizer, f"{table}.optimizer")


def try_more_teachers(recipe: Recipe, coming: Collection[Path] = ()) -> None:
    """Tries whether the student's other teachers are there.

    Args:
        recipe: of the student.
        coming: folders of runs that will be there in time.

    Raises:
        RunError: one is not.
    """
    folder = Path(recipe.checkpoints)
    names = [name for name in recipe.student.more_teachers if not {Path(name), folder / name} & set(coming)]
    with placed("[student] more_teachers: "):
        more_teachers(names, folder, folder / recipe.name)


@dataclass(frozen=True)
class Tried:
    """That a recipe's own parts were tried.

    Attributes:
        shape: what its data are like; None where that is not known.
        told: the messages of what was wrong.
    """

    shape: Shape | None
    told: frozenset[str]


def grid_errors(recipe: Recipe, own: Tried | None = None) -> Iterator[UserError]:
    """What keeps cells of a comparison from being run; what an arm alone asks for comes with the arm's name.

    Cells of the first seed are looked at, as others ask for nothing else, and what several ask for is tried once.

    Args:
        recipe: that of the comparison.
        own: what was tried of it; None: nothing was.

    Raises:
        RecipeError: an arm's assignments do not fit, see `grid`.
    """
    shapes = {} if own is None else {_data_part(recipe): own.shape}
    tried = set() if own is None else set(_trials(recipe, own.shape))
    told = set() if own is None else set(own.told)
    coming: set[Path] = set()
    for cell in (cell for cell in grid(recipe) if cell.seed == recipe.compare.seeds[0]):
        for common, error in _cell_errors(cell, recipe, shapes, tried, coming):
            if error.message not in told:  # as of data that are missing, however many arms divide them
                told.add(error.message)
                place = "" if common else arm_place(cell)
                yield type(error)(f"{place}{error.message}", cure=error.cure)
        coming.add(cell.teacher_folder)


def _cell_errors(
    cell: Cell, recipe: Recipe, shapes: dict[str, Shape | None], tried: set[str], coming: set[Path]
) -> Iterator[tuple[bool, UserError]]:
    """Errors of a cell's parts that were not tried yet, and whether these are the recipe's own; notes what it tries."""
    own, data = _data_part(recipe), _data_part(cell.recipe)
    if data not in shapes:
        shapes[data] = KNOWN.get(cell.recipe.data.source)
        try:
            shapes[data] = _opened(cell.recipe)
        except UserError as error:
            yield data == own, error
    # What a run that was begun started from was there; it is not asked for again.
    weights = not (cell.teacher_folder / RECORD).exists()
    students = cell.kind == "student"
    for part, trial in _trials(cell.recipe, shapes[data], students=students, weights=weights, coming=coming).items():
        if part in tried:
            continue
        tried.add(part)
        try:
            trial()
        except UserError as error:
            yield part in _trials(recipe, shapes.get(own)), error


def _opened(recipe: Recipe) -> Shape:
    """Raises: DataError: see `open_data`."""
    data = open_data(recipe, quick=True)
    channels, side, _ = data.shape
    return channels, side, data.num_classes


def _data_part(recipe: Recipe) -> str:
    """What decides whether the data can be opened; of two recipes that ask for the same, the same."""
    return digest({"data": recipe.data.model_dump(mode="json"), "padding": recipe.views.crop_padding})


def _trials(
    recipe: Recipe,
    shape: Shape | None,
    *,
    students: bool = True,
    weights: bool = True,
    coming: Collection[Path] = (),
) -> dict[str, _Trial]:
    """What is to be tried of a recipe besides its data, by a digest of what each trial looks at."""
    teacher, student, labels = recipe.teacher, recipe.student, recipe.teacher.labels
    parts: list[tuple[Any, _Trial]] = [
        (_network(teacher, shape, weights), partial(try_network, "teacher", teacher, shape, weights=weights)),
        (["teacher.optimizer", _plain(teacher.optimizer)], partial(try_optimizer, "teacher", teacher)),
    ]
    if shape is not None and labels.rule in LEARNED_RULES:
        start = (shape[2], labels.true_class_mass, labels.parametrisation)
        parts.append((["start", *start], partial(check_start, *start)))
    if shape is not None and students:
        parts.append((["k", recipe.export.k, shape[2]], partial(check_k, recipe, recipe.data.source, shape[2])))
    if students:
        chosen_by = None if student.model else _network(teacher, shape, weights=False)
        parts += [
            (
                [_network(student, shape, weights), chosen_by],
                partial(try_student_network, recipe, shape, weights=weights),
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


def _imported(stage: StageRecipe) -> bool:
    return isinstance(stage, TeacherRecipe) and bool(stage.imported.source)

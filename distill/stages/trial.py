"""Whether what a recipe names can be had, asked before anything is trained: networks, optimisers, data, teachers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from distill.bilevel.hygiene import classifier
from distill.data.loader import open_data
from distill.errors import UserError
from distill.models import zoo
from distill.models.capture import Inside
from distill.models.features import feature_width
from distill.models.maps import find_stages
from distill.models.zoo import Fit
from distill.recipe.checks import check_recipe
from distill.recipe.losses import Need, needs
from distill.recipe.schema import Recipe, StageRecipe, StudentRecipe, TeacherRecipe
from distill.report.runs import RECORD
from distill.stages.common import fit_model
from distill.stages.export import check_k
from distill.stages.settling import settle_student
from distill.stages.student import more_teachers
from distill.training.schedule import build_optimizer

Shape: TypeAlias = tuple[int, int, int]  # channels, side, classes

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


def refuse_student(recipe: Recipe) -> None:
    """Refuses a recipe whose student could not be trained, as far as that shows before its teacher is.

    Raises:
        UserError: the recipe breaks a rule; the data, the student's network, optimiser or other teachers cannot be had,
            or a network does not give what the loss looks at.
    """
    check_recipe(recipe, recipe.name)
    fit = zoo.fit_once()
    shape, begun = opened(recipe), (Path(recipe.checkpoints) / recipe.name / RECORD).exists()
    # A finished student asks no more for what it started from.
    try_student_network(recipe, shape, weights=not begun, fit=fit)
    try_online(recipe, shape, fit)
    try_optimizer("student", recipe.student)
    try_more_teachers(recipe)


def try_network(
    table: str, stage: StageRecipe, shape: Shape | None, *, weights: bool = True, fit: Fit | None = None
) -> None:
    """Tries whether a stage's network can be built.

    Args:
        table: the recipe's, for the error.
        stage: what it holds.
        shape: of the images; None: it is not known, and only the name is looked up.
        weights: whether pretrained weights are looked for, too; none are downloaded.
        fit: as it is for all that follow, see `fit_model`.

    Raises:
        ModelError: it cannot be built, or weights cannot be had.
    """
    if shape is None:
        if stage.model and not _imported(stage):
            with placed(f"[{table}] model: "):
                zoo.check_name(stage.model, stage.model_args)
        return
    channels, side, classes = shape
    spec = fit_model(stage, table, channels=channels, image_size=side, classes=classes, fit=fit)
    if weights and stage.pretrained:
        with placed(f"[{table}] pretrained: "):
            zoo.check_pretrained(spec)


def try_student_network(recipe: Recipe, shape: Shape | None, *, weights: bool = True, fit: Fit | None = None) -> None:
    """`try_network` of the student, which is chosen first where the recipe names none, and `_try_inside`.

    Raises:
        ModelError: see there; also of the teacher that it is to be smaller than.
    """
    if shape is not None:
        channels, side, classes = shape
        recipe = settle_student(recipe, channels=channels, image_size=side, classes=classes, fit=fit).recipe
    try_network("student", recipe.student, shape, weights=weights, fit=fit)
    if shape is not None:
        _try_inside("student", recipe.student, shape, needs(recipe.student.loss), fit)


def refuse_export(recipe: Recipe) -> None:
    """Refuses a recipe whose teacher's store could not be written, before the teacher is trained.

    Raises:
        UserError: the data cannot be had; or see `try_export`.
    """
    if recipe.export.k or recipe.export.features or recipe.export.maps:
        try_export(recipe, opened(recipe))


def try_export(recipe: Recipe, shape: Shape, fit: Fit | None = None) -> None:
    """Tries whether there are as many logits as are to be stored, and what is to be stored beside them.

    Raises:
        RecipeError: there are fewer.
        ModelError: the teacher cannot give it.
    """
    check_k(recipe, recipe.data.source, shape[2])
    beside_logits(recipe, shape, fit)


def try_online(recipe: Recipe, shape: Shape, fit: Fit | None = None) -> None:
    """Tries whether the teacher gives what is asked of it while a student trains.

    Raises:
        ModelError: it does not.
    """
    if recipe.student.online:
        _try_inside("teacher", recipe.teacher, shape, needs(recipe.student.loss), fit)


def beside_logits(recipe: Recipe, shape: Shape, fit: Fit | None = None) -> tuple[int, list[tuple[int, int]]]:
    """The width of the features and the sizes of the attention maps that are to be stored; 0 and none for none.

    Raises:
        ModelError: the teacher cannot give them.
    """
    if not (recipe.export.features or recipe.export.maps):
        return 0, []
    model, images = _built("teacher", recipe.teacher, shape, fit)
    width = feature_width(model, images) if recipe.export.features else 0
    if not recipe.export.maps:
        return width, []
    with placed("[export] maps: "):
        return width, [stage.size for stage in find_stages(model, images)]


def try_last_layer(teacher: TeacherRecipe, shape: Shape, fit: Fit | None = None) -> None:
    """Tries whether a teacher whose label gradient is to run through its last layer alone has one.

    Raises:
        BilevelError: it has several, or none that is linear.
    """
    model, _ = _built("teacher", teacher, shape, fit)
    with placed("[teacher.labels] estimator: "):
        classifier(model)


def _try_inside(table: str, stage: StageRecipe, shape: Shape, wanted: frozenset[Need], fit: Fit | None) -> None:
    features, maps = "features" in wanted, "maps" in wanted
    if features or maps:
        model, images = _built(table, stage, shape, fit)
        with placed(f"[{table}] model: "):
            Inside(model, images, features=features, maps=maps)


def _built(table: str, stage: StageRecipe, shape: Shape, fit: Fit | None) -> tuple[nn.Module, Tensor]:
    """A stage's network in eval mode, with weights by chance, and two images that it takes."""
    channels, side, classes = shape
    spec = fit_model(stage, table, channels=channels, image_size=side, classes=classes, fit=fit)
    with torch.random.fork_rng(devices=[]):
        model = zoo.create(spec).eval()
    return model, torch.linspace(-1, 1, 2 * spec.channels * side**2).view(2, spec.channels, side, side)


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


def opened(recipe: Recipe) -> Shape:
    """What a recipe's images are like.

    Raises:
        DataError: see `open_data`.
    """
    data = open_data(recipe, quick=True)
    channels, side, _ = data.shape
    return channels, side, data.num_classes


def _imported(stage: StageRecipe) -> bool:
    return isinstance(stage, TeacherRecipe) and bool(stage.imported.source)

"""What a student's recipe leaves open, filled in: which network, at which temperature, with which weights, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.errors import RecipeError
from distill.models import zoo
from distill.models.zoo import Fit
from distill.recipe.losses import HARD_RULES, LossRecipe, in_use, settle
from distill.recipe.schema import Recipe
from distill.recipe.student_checks import label_rule
from distill.stages.common import fit_model

# Usual students, by no measurement of ours; the literature's nets among those for small images.
_SMALL_IMAGES = ("resnet8", "resnet20", "mobilenetv2_050", "resnet8x4", "resnet18")
_IMAGES = ("mobilenetv3_small_050", "mobilenetv3_small_100", "mobilenetv3_large_100", "resnet18", "resnet50")
_SMALL_SIDE = 64
_SHARE = 4  # a student has at most so much of its teacher's parameters: a quarter


@dataclass(frozen=True)
class SettledRecipe:
    """A recipe whose `[student]` has nothing left open, and a sentence about each choice that was made here."""

    recipe: Recipe
    reasons: tuple[str, ...]


def settle_student(
    recipe: Recipe,
    more_rules: Sequence[str] = (),
    *,
    channels: int,
    image_size: int,
    classes: int,
    fit: Fit | None = None,
) -> SettledRecipe:
    """Chooses the student's network, where the recipe names none, and settles its loss.

    Args:
        recipe: of a teacher, and of its student.
        more_rules: what the labels of further teachers were; one soft teacher makes their mean soft.
        channels: of the images.
        image_size: H = W, in pixels.
        classes: C.
        fit: see `fit_model`.

    Raises:
        RecipeError: a loss teaches nothing with so few classes.
        ModelError: the teacher, which the student is to be smaller than, cannot be fitted.
    """
    _refuse_two_classes(recipe.student.loss, classes)
    student, reasons = recipe.student, []
    if not student.model:
        name, reason = _model(recipe, channels, image_size, classes, fit or zoo.fit)
        student = student.model_copy(update={"model": name})
        reasons.append(reason)
    rules = (label_rule(recipe), *more_rules)
    rule = next((each for each in rules if each not in HARD_RULES), rules[0])
    settled = settle(student.loss, rule, student.epochs)
    student = student.model_copy(update={"loss": settled.loss})
    return SettledRecipe(recipe.model_copy(update={"student": student}), (*reasons, *settled.reasons))


def _refuse_two_classes(loss: LossRecipe, classes: int) -> None:
    for name, term, _ in in_use(loss):
        if term.standardise and classes == 2:
            place = "[student.loss]" if term is loss else f"[student.loss.plus.{name}]"
            raise RecipeError(
                f"{place} standardise: found true with images of two classes, whose logits then are 1 and -1 whatever "
                "the network says, so that nothing is taught",
                cure="leave it out.",
            )


def _model(recipe: Recipe, channels: int, image_size: int, classes: int, fit: Fit) -> tuple[str, str]:
    """The largest usual student that has at most a quarter of its teacher's parameters, and why it."""
    sizes: dict[str, int] = {"channels": channels, "image_size": image_size, "classes": classes}
    teachers = zoo.parameter_count(fit_model(recipe.teacher, "teacher", **sizes, fit=fit))
    names = _SMALL_IMAGES if image_size <= _SMALL_SIDE else _IMAGES
    counts = {
        name: zoo.parameter_count(fit(name, classes=classes, channels=channels, image_size=image_size))
        for name in names
    }
    fitting = [name for name in names if counts[name] * _SHARE <= teachers]
    name = max(fitting, key=lambda each: counts[each]) if fitting else min(counts, key=lambda each: counts[each])
    share = f"{counts[name]:,} parameters to the teacher's {teachers:,}"
    share += "" if fitting else ", the smallest of the usual ones"
    return name, f"student {name}: {share}, for images of {image_size} x {image_size} pixels; --model takes another"

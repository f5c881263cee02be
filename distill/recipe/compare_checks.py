"""What the fields of `[compare]` ask of each other and of the rest of the recipe; see `checks.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from distill.errors import RecipeError
from distill.recipe.compare import CompareRecipe
from distill.recipe.digest import arm_digest
from distill.recipe.fields import key
from distill.recipe.grid import UNTRAINED, arm_recipe, run_name, takes_temperature
from distill.recipe.losses import CATALOGUE, LossName, LossRecipe
from distill.recipe.schema import Recipe

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
_SHARED = ("name", "seed", "checkpoints", "compare")  # what every arm of a comparison has in common


@dataclass(frozen=True)
class Arms:
    """The arms of a comparison, each made once: none where label rules are compared.

    Attributes:
        made: the recipe of every arm that can be made.
        refused: what is wrong with the others' assignments, one line each.
    """

    made: Mapping[str, Recipe]
    refused: Mapping[str, list[str]]


def make_arms(recipe: Recipe) -> Arms:
    """Makes every arm of a recipe, as far as that can be done."""
    made: dict[str, Recipe] = {}
    refused: dict[str, list[str]] = {}
    for name, assignments in recipe.compare.arms.items():
        if shared := _shared(assignments):
            refused[name] = shared
            continue
        try:
            made[name] = arm_recipe(recipe, name)
        except RecipeError as error:
            refused[name] = [line.removeprefix("override ") for line in error.message.splitlines()]
    return Arms(made, refused)


def compare_problems(recipe: Recipe, arms: Arms, comparing: bool) -> Iterator[str]:
    """Every rule about `[compare]` that the recipe breaks, one line each.

    Args:
        recipe: as for `checks.problems`.
        arms: those of the recipe.
        comparing: as for `checks.problems`.
    """
    yield from _arms(recipe, arms)
    yield from _reference(recipe.compare)
    yield from _lists(recipe.compare)
    if comparing:
        yield from _imported(recipe, arms.made)
        yield from _twice(arms.made)
        yield from _students(recipe, arms.made)


def _arms(recipe: Recipe, arms: Arms) -> Iterator[str]:
    compare = recipe.compare
    if compare.arms and compare.teachers != CompareRecipe.model_fields["teachers"].default:
        yield "[compare] teachers: given beside [compare.arms], which replace them; leave one of them out"
    folders: dict[str, str] = {}
    for name in compare.arms:
        place = f"[compare.arms] {key(name)}"
        if not _NAME.fullmatch(name):
            yield (
                f"{place}: found this name, expected at most 80 letters, digits, . _ + -, the first a letter or a digit"
            )
        folder = run_name(name, 0).casefold()  # some file systems know no capitals
        if folder in folders:
            yield f"{place}: its runs would lie in the same folder as those of {key(folders[folder])}; rename one"
        folders.setdefault(folder, name)
        if name == UNTRAINED and compare.students and compare.controls:
            yield f"{place}: is the name of a control; rename it, or set [compare] controls = false"
        for line in arms.refused.get(name, ()):
            yield f"{place}: {line}"


def _shared(assignments: Sequence[str]) -> list[str]:
    """What an arm may not assign, as it is not its own."""
    fields = [text.partition("=")[0].strip() for text in assignments]
    refused = [field for field in fields if field.split(".")[0].strip() in _SHARED]
    return [f"found {json.dumps(field)}, which all arms have in common; leave it out" for field in refused]


def _twice(made: Mapping[str, Recipe]) -> Iterator[str]:
    """Arms that are the same: each would be trained, and its pairs would count in Holm's correction."""
    first: dict[str, str] = {}
    for name, arm in made.items():
        if arm.teacher.imported.source:
            continue  # a comparison trains none, and says that instead
        same = first.setdefault(arm_digest(arm), name)
        if same != name:
            yield f"[compare.arms] {key(name)}: trains the same as {key(same)}; leave one of them out"


def _imported(recipe: Recipe, made: Mapping[str, Recipe]) -> Iterator[str]:
    """Of arms alone: the recipe of an imported teacher's run is sound, whatever it has arms of."""
    for name, arm in made.items():
        if (source := arm.teacher.imported.source) and source != recipe.teacher.imported.source:
            yield (
                f"[compare.arms] {key(name)}: [teacher.imported] source: found {json.dumps(source)}, but the teachers "
                "of a comparison are trained by it; leave it out"
            )


def _reference(compare: CompareRecipe) -> Iterator[str]:
    if compare.first not in compare.names:
        expected = " or ".join(map(json.dumps, compare.names))
        yield f"[compare] reference: found {json.dumps(compare.reference)}, expected {expected}"


def _lists(compare: CompareRecipe) -> Iterator[str]:
    lists: dict[str, Sequence[object]] = {
        "teachers": compare.teachers,
        "seeds": compare.seeds,
        "losses": compare.losses,
        "temperatures": compare.temperatures,
        "weights": compare.weights,
    }
    for name, values in lists.items():
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            yield f"[compare] {name}: found {twice!r} twice, expected each once"
    if min(compare.seeds) < 0:
        yield f"[compare] seeds: found {min(compare.seeds)}, expected seeds of at least 0"


def _students(recipe: Recipe, made: Mapping[str, Recipe]) -> Iterator[str]:
    compare = recipe.compare
    if not compare.students:
        return
    if recipe.student.seed is not None and len(compare.seeds) > 1:
        yield (
            f"[student] seed: found {recipe.student.seed} with {len(compare.seeds)} seeds in [compare], "
            "each of which is to train a student of its own; leave it out"
        )
    for name, one in {"temperatures": "temperature", "losses": "loss", "weights": "weight"}.items():
        if len(getattr(compare, name)) > 1 and recipe.data.validation == 0:
            yield (
                f"[compare] {name}: found several with no validation images to choose by, "
                f"expected [data] validation above 0, or one {one}"
            )
    losses = _losses(recipe, made)
    named = f'the loss "{losses[0]}" has' if len(losses) == 1 else f"the losses {', '.join(losses)} have"
    if compare.temperatures and not any(takes_temperature(loss) for loss in losses):
        yield f"[compare] temperatures: given, but {named} none; leave them out, or set [student.loss] name"
    if compare.weights and not any(CATALOGUE[loss].takes_share for loss in losses):
        yield (
            f"[compare] weights: given, but {named} none to choose, expected a loss that asks a teacher and whose own "
            "weight is at most 1; leave them out, or set [student.loss] name"
        )
    if compare.weights:
        yield from _weighed_twice(recipe, made)
    yield from _lost(recipe, made)


def _losses(recipe: Recipe, made: Mapping[str, Recipe]) -> list[LossName]:
    """All that students of the grid learn with, but for controls."""
    arms = list(made.values()) or [recipe]
    return list(dict.fromkeys(recipe.compare.losses or (arm.student.loss.name for arm in arms)))


def _lost(recipe: Recipe, made: Mapping[str, Recipe]) -> Iterator[str]:
    """What arms assign to the student's loss, and no student of the grid would have: two arms would be the same."""
    compare, common = recipe.compare, recipe.student.loss
    for name, arm in made.items():
        loss, place = arm.student.loss, f"[compare.arms] {key(name)}: [student.loss]"
        if compare.losses and loss.name not in compare.losses and _own(loss) != _own(common):
            yield (
                f"{place} name: is {loss.name} here, which is not among [compare] losses, and so no student has what "
                "the arm assigns to its loss; name it there, or leave [compare] losses out"
            )
        if compare.temperatures and loss.temperature != common.temperature and takes_temperature(loss.name):
            yield (
                f"{place} temperature: assigned with [compare] temperatures, which replace it; leave one of them out"
            )


def _own(loss: LossRecipe) -> LossRecipe:
    """Without what students have with every loss."""
    return loss.model_copy(update={"plus": {}, "allow_topk": False})


def _weighed_twice(recipe: Recipe, made: Mapping[str, Recipe]) -> Iterator[str]:
    """Weights of the student's loss that those of the grid would replace, in the recipe or in an arm."""
    common = _own_weights(recipe)
    yield from common
    for name, arm in made.items():
        for line in _own_weights(arm):
            if line not in common:
                yield f"[compare.arms] {key(name)}: {line}"


def _own_weights(recipe: Recipe) -> list[str]:
    loss = recipe.student.loss
    if not CATALOGUE[loss.name].takes_share:
        return []
    given = {name: value for name in ("hard_weight", "soft_weight") if (value := getattr(loss, name)) is not None}
    return [
        f"[student.loss] {name}: found {value:g} with [compare] weights, which replace it; leave one of them out"
        for name, value in given.items()
    ]

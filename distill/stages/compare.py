"""Teachers that differ in their labels only, and a student of each.

Validation chooses the student's temperature for each teacher; test only reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.errors import RunError
from distill.recipe.checks import check_recipe
from distill.recipe.load import dump_recipe
from distill.recipe.schema import LabelRule, Recipe
from distill.report.comparison import Arm, Comparison
from distill.report.runs import RECORD, Run, program_commit
from distill.stages.labels import draw_suspects
from distill.stages.pipeline import run_teacher
from distill.stages.student import train_student
from distill.store.atomic import writable_folder, write_bytes
from distill.training.events import Listener, Notice

COMPARISON = "comparison.toml"  # the recipe of a comparison's folder


@dataclass(frozen=True)
class Compared:
    """What a comparison leaves: the numbers, where they lie, and one learned teacher to look at."""

    comparison: Comparison
    folder: Path
    picture: Path | None
    example: Run  # a teacher, a learned one where there is one


def compare(recipe: Recipe, listener: Listener) -> Compared:
    """Trains what `[compare]` asks for, skipping what is already on disk, and writes table and picture.

    Runs land in `<checkpoints>/<name>-compare/<rule>-s<seed>`.

    Raises:
        UserError: anything that the user can mend.
        Interrupted: asked to stop; the same call goes on from there.
    """
    check_recipe(recipe, recipe.name, comparing=True)
    cells = [(seed, rule) for seed in recipe.compare.seeds for rule in recipe.compare.teachers]
    for seed, rule in cells:  # before hours are spent on the first
        own = _cell_recipe(recipe, Path(), rule, seed)
        check_recipe(own, f"{recipe.name}, {own.name}")
    folder = writable_folder(Path(recipe.checkpoints) / f"{recipe.name}-compare")
    if (folder / RECORD).exists():
        raise RunError(f"{folder}: is a run of that name, not a comparison", cure="choose another name: --set name=...")
    arms, teachers = [], {}
    for number, (seed, rule) in enumerate(cells, start=1):
        listener(Notice(f"cell {number} of {len(cells)}: teacher with {rule} labels, seed {seed}"))
        teacher, student = _cell(recipe, folder, rule, seed, listener)
        teachers[rule, seed] = teacher
        arms.append(
            Arm(
                rule=rule,
                seed=seed,
                teacher=teacher.metrics("teacher"),
                student=student.metrics("student"),
                temperature=student.recipe.student.loss.temperature,
            )
        )
    comparison = Comparison(name=recipe.name, commit=program_commit(), arms=tuple(arms))
    write_bytes(folder / "table.md", comparison.markdown().encode())
    write_bytes(folder / COMPARISON, dump_recipe(recipe).encode())
    example = teachers[_most_telling(recipe), recipe.compare.seeds[0]]
    return Compared(comparison, folder, draw_suspects(example), example)


def _most_telling(recipe: Recipe) -> LabelRule:
    """The rule to look at: instance labels, else class labels, else the first."""
    rules = recipe.compare.teachers
    order: tuple[LabelRule, ...] = ("instance", "class", rules[0])
    return next(rule for rule in order if rule in rules)


def _cell_recipe(recipe: Recipe, folder: Path, rule: str, seed: int) -> Recipe:
    """Of a teacher."""
    labels = recipe.teacher.labels.model_copy(update={"rule": rule})
    own = recipe.model_copy(
        update={
            "name": f"{rule.replace('+', '-')}-s{seed}",  # a run's name has no plus sign
            "seed": seed,
            "checkpoints": str(folder),
            "teacher": recipe.teacher.model_copy(update={"labels": labels}),
        }
    )
    if recipe.compare.temperatures and recipe.export.format == "topk":  # which not every temperature can read
        return _at(own, recipe.compare.temperatures[0])
    return own


def _at(recipe: Recipe, temperature: float | None) -> Recipe:
    """With this temperature of the student's loss."""
    loss = recipe.student.loss.model_copy(update={"temperature": temperature})
    return recipe.model_copy(update={"student": recipe.student.model_copy(update={"loss": loss})})


def _cell(recipe: Recipe, folder: Path, rule: str, seed: int, listener: Listener) -> tuple[Run, Run]:
    """A teacher and, by validation, the best of its students over the temperatures."""
    own = _cell_recipe(recipe, folder, rule, seed)
    teacher = run_teacher(own, listener)
    students = []
    for temperature in recipe.compare.temperatures or (recipe.student.loss.temperature,):
        students.append(train_student(teacher, _at(own, temperature), listener))
    return teacher, max(students, key=_validation_accuracy)


def _validation_accuracy(student: Run) -> float:
    return student.metrics("student").get("validation_accuracy", 0.0)

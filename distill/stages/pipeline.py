"""All stages in a row. Each skips itself when its inputs' digest is already on disk."""

from __future__ import annotations

from distill.recipe.schema import Recipe
from distill.report.runs import Run
from distill.stages.export import export_teacher
from distill.stages.imported import import_teacher
from distill.stages.student import train_student
from distill.stages.teacher import train_teacher
from distill.stages.trial import refuse_export, refuse_student
from distill.training.events import Listener


def run_teacher(recipe: Recipe, listener: Listener, *, export: bool = True) -> Run:
    """Stage one, then stage two unless told otherwise; what keeps that from being done is said before the first."""
    if export:
        refuse_export(recipe)
    run = train_teacher(recipe, listener)
    if export:
        export_teacher(run, recipe, listener)
    return run


def run_imported(text: str, recipe: Recipe, listener: Listener, *, model: str | None = None) -> Run:
    """Imports a teacher that was trained elsewhere, in place of stage one, then stage two. See `import_teacher`."""
    run, recipe = import_teacher(text, recipe, listener, model=model)
    export_teacher(run, recipe, listener)
    return run


def run_pipeline(recipe: Recipe, listener: Listener) -> tuple[Run, Run]:
    """Teacher, export, student. Returns both run folders.

    Raises:
        UserError: anything that the user can mend; about the student, where it shows, before the teacher is trained.
        Interrupted: asked to stop; the same call goes on from there.
    """
    refuse_student(recipe)
    teacher = run_teacher(recipe, listener)
    return teacher, train_student(teacher, recipe, listener)

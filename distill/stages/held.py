"""Run folders hold what was asked for under their name, and nothing else is put there. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from distill.errors import RunError, UserError
from distill.recipe.digest import PLACES, differences
from distill.recipe.grid import Cell
from distill.recipe.schema import Recipe
from distill.report.published import COMPARISON
from distill.report.results import of_another_recipe
from distill.report.runs import RECORD, WEIGHTS, Run, open_run

_STATE = Path("state", "teacher.safetensors")
# What decides no teacher.
_NO_MATTER = (*PLACES, "views.count:")
_CURE = "choose another name (--set name=...), or delete the folder."


def refuse_another_teacher(folder: Path, recipe: Recipe, digest: str) -> None:
    """A run folder keeps one teacher: what was trained there, finished or not, is never overwritten by another.

    Args:
        folder: the run's.
        recipe: of the teacher that is to be there.
        digest: of all that decides it, the images too.

    Raises:
        RunError: another one is, or one that nothing is known of; or a comparison is, with folders for its teachers.
    """
    if (folder / COMPARISON).exists():
        reason = f"holds a comparison ({COMPARISON}), expected a teacher's folder or none"
        raise RunError(f"{folder}: {reason}", cure="choose another name: --set name=...")
    if not (folder / RECORD).exists():
        if (folder / WEIGHTS).is_file():
            raise RunError(f"{folder}: holds a teacher, but no {RECORD} that says of what recipe", cure=_CURE)
        return
    run = open_run(folder)
    if _keeps_one(run) and run.record.begun != digest:
        changed = _changed(run.recipe, recipe)
        reason = "; ".join(changed) or "its recipe.toml, the images or the given labels were changed since"
        raise RunError(f"{folder}: holds a teacher of another recipe: {reason}", cure=_CURE)


def refuse_other_teachers(cells: Iterable[Cell]) -> None:
    """As `refuse_another_teacher`, for all of a comparison by the recipes alone: before any of it is written over.

    Raises:
        RunError: a cell's folder holds another teacher than the cell's.
    """
    held: dict[Path, list[str]] = {}
    for cell in (each for each in cells if each.kind == "teacher"):
        with suppress(UserError):  # a damaged folder is its own cell's failure
            run = open_run(cell.teacher_folder)
            if _keeps_one(run) and of_another_recipe(run, cell):
                held[run.folder] = _changed(run.recipe, cell.recipe)
    if held:
        folder, changed = next(iter(held.items()))
        more = f"; and so do {len(held) - 1} more of the comparison" if len(held) > 1 else ""
        cure = _CURE.replace("the folder", "the folder that is no longer wanted")
        raise RunError(f"{folder}: holds a teacher of another recipe: {'; '.join(changed)}{more}", cure=cure)


def _keeps_one(run: Run) -> bool:
    """Whether a teacher is there, finished or half: not what failed before its first epoch was over."""
    return bool(run.record.stages) or (run.folder / _STATE).exists()


def _changed(old: Recipe, new: Recipe) -> list[str]:
    changed = differences(old, new, ("seed", "data", "views", "teacher"))
    return [line for line in changed if not line.startswith(_NO_MATTER)]

"""`distill compare`: teachers that differ in their labels, or in what their arms assign, and students of each.

Validation chooses each teacher's loss, temperature and weight; test only reports.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.errors import RecipeError, RunError, UserError
from distill.recipe.checks import cell_problems, check_recipe
from distill.recipe.grid import Cell, comparison_folder, grid
from distill.recipe.labels import LabelRule
from distill.recipe.schema import Recipe
from distill.report.comparison import Comparison
from distill.report.comparison_folder import is_plan, read_comparison, write_comparison, write_plan
from distill.report.lock import waiting
from distill.report.published import COMPARISON
from distill.report.results import forget_others, write_finished
from distill.report.runs import RECORD, Run, open_run
from distill.stages.arms import grid_errors
from distill.stages.cells import reason_of, run_cell
from distill.stages.grid import look_up
from distill.stages.held import refuse_other_teachers
from distill.stages.labels import draw_suspects
from distill.stages.run_grid import Manner, run_cells
from distill.stages.schedule import Schedule
from distill.store.atomic import writable_folder
from distill.training.events import Listener, Notice


@dataclass(frozen=True)
class Compared:
    """What a comparison leaves: the numbers, where they lie, and one learned teacher to look at."""

    comparison: Comparison
    folder: Path
    picture: Path | None
    example: Run | None  # a teacher, a learned one where there is one; None: no teacher is finished
    exit_code: int  # 0, or what failures make of it: 2 where the user can mend them all, else 1
    undrawn: str = ""  # why there is no picture, where there should be one


def compare(recipe: Recipe, listener: Listener, manner: Manner = Manner()) -> Compared:  # noqa: B008
    """Trains what `[compare]` asks for, skipping what is already on disk, and writes table and picture.

    Runs land in `<checkpoints>/<name>-compare/<arm>-s<seed>`. A cell that fails stops no other, but by a full disk;
    what failed and why is in the comparison.

    Raises:
        UserError: anything that the user can mend, before the first cell; or another comparison of that name was begun
            since, the disk is full, or what became of a cell cannot be written down.
        Interrupted: asked to stop; the same call goes on from there.
    """
    cells = planned(recipe)
    folder = prepared_folder(recipe, cells)
    there = look_up(cells, listener)
    finished = there.finished
    forget_others(folder, cells, there.wanted)
    for number, run in finished.items():
        write_finished(folder, cells[number], run)
    schedule = Schedule(cells, {number: seconds_of(run) for number, run in finished.items()}, manner.budget)
    run_cells(schedule, folder, manner, listener)
    _refuse_another_plan(recipe, folder)
    comparison = read_comparison([folder])
    write_comparison(comparison, folder)
    example, code = _most_telling(recipe, comparison, folder), _exit_code(schedule, comparison)
    picture, undrawn = None, ""
    try:
        picture = None if example is None else draw_suspects(example)
    except UserError as error:  # the tables are written, and are what was asked for
        undrawn = f"no picture of suspected label errors: {reason_of(error)}"
        listener(Notice(f"warning: {undrawn}"))
        code = code or 2
    return Compared(comparison, folder, picture, example, code, undrawn)


def _exit_code(schedule: Schedule, comparison: Comparison) -> int:
    """See `Compared`. A finished cell whose run is gone or damaged by now is one that the user can mend, too."""
    faults = [outcome.fault for outcome in schedule.failed.values()]
    lost = any(result.cell.number in schedule.finished for result in comparison.unfinished)
    return 1 if any(faults) else 2 if faults or lost else 0


def run_one(recipe: Recipe, number: int, listener: Listener) -> Run:
    """Runs one cell of a comparison, for clusters that start a job for each.

    Raises:
        RunError: there is no such cell, or it is a student's and its teacher is not finished.
        UserError: anything else that the user can mend.
        Interrupted: asked to stop; the same call goes on from there.
    """
    cells = planned(recipe)
    if number not in range(len(cells)):
        raise RunError(
            f"{recipe.name}: found cell {number}, expected one from 0 to {len(cells) - 1}",
            cure="--list-cells has them.",
        )
    cell = cells[number]
    refuse_other_teachers(cells)  # before it is said which cell comes first, of which it would be said too
    unchanged = is_plan(recipe, comparison_folder(recipe))  # else every cell that has a run may ask for another
    near = [each for each in cells if each.number in (number, cell.needs) or each.needs == number]
    there = look_up(near if unchanged else cells, listener)
    if cell.needs is not None and cell.needs not in there.finished:
        raise RunError(
            f"{recipe.name}: cell {number} is a {cell}, whose teacher, cell {cell.needs}, is not finished",
            cure=f"{waiting(cell.teacher_folder)}run that first: --cell {cell.needs}",
        )
    folder = prepared_folder(recipe, cells)
    forget_others(folder, cells, there.wanted)
    return run_cell(cell, folder, listener)


def planned(recipe: Recipe) -> tuple[Cell, ...]:
    """The cells, each with a recipe that was checked and tried: before hours are spent on the first.

    Raises:
        RecipeError: a recipe breaks a rule.
        UserError: the data, a network, an optimiser or a teacher that a cell asks for cannot be had.
    """
    check_recipe(recipe, recipe.name, comparing=True)
    if source := recipe.teacher.imported.source:
        raise RecipeError(
            f"{recipe.name}: [teacher.imported] source: found {json.dumps(source)}, but the teachers of a comparison "
            "are trained by it",
            cure="leave [teacher.imported] out, and say in [teacher] what to train.",
        )
    cells = grid(recipe)
    if found := [f"{recipe.name}: {line}" for line in cell_problems(cells)]:
        raise RecipeError("\n".join(found), cure="`distill list fields` says what each field is for.")
    for error in grid_errors(recipe, cells):
        raise error  # the first; `distill check` names them all
    return cells


def prepared_folder(recipe: Recipe, cells: Sequence[Cell]) -> Path:
    """The comparison's folder, with its recipe in it.

    Raises:
        RunError: a run lies there, or teachers of another recipe, whose numbers the new one's would be taken for.
        StoreError: it cannot be written to.
    """
    folder = writable_folder(comparison_folder(recipe))
    if (folder / RECORD).exists():
        raise RunError(f"{folder}: is a run of that name, not a comparison", cure="choose another name: --set name=...")
    refuse_other_teachers(cells)
    write_plan(recipe, folder)
    return folder


def _refuse_another_plan(recipe: Recipe, folder: Path) -> None:
    """Whoever has put another recipe there has forgotten cells of this one, and its table would pass for this one's.

    Raises:
        RunError: another recipe is in the comparison's folder.
    """
    path = folder / COMPARISON
    if path.is_file() and not is_plan(recipe, folder):
        raise RunError(
            f"{path}: found another recipe than the one whose cells were run; it was put there meanwhile",
            cure="run the same command again for its tables, when nothing else is at work there: what is trained is "
            "kept. Or choose another name for one of the two: --set name=...",
        )


def seconds_of(run: Run) -> float:
    """That the stages of a finished run took."""
    return sum(record.seconds for record in run.record.stages.values())


def _most_telling(recipe: Recipe, comparison: Comparison, folder: Path) -> Run | None:
    """The teacher to look at: with instance labels, else class labels, else the first; of the first seed there is."""
    finished = [r for r in comparison.results if r.cell.kind == "teacher" and r.state == "finished"]
    wanted: Sequence[LabelRule | None] = ("instance", "class+instance", "class", None)
    for rule in wanted:
        for result in finished:
            if rule in (None, result.cell.recipe.teacher.labels.rule) and not result.cell.control:
                return open_run(folder / result.run)
    return None

"""A comparison's folder: its recipe, the cells' results, the tables. Read and written without torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from distill.errors import RunError, UserError
from distill.recipe.compare import CompareRecipe
from distill.recipe.digest import PLACES, differences
from distill.recipe.grid import Cell, grid
from distill.recipe.load import dump_recipe, load_recipe
from distill.recipe.schema import Recipe
from distill.report.comparison import Comparison
from distill.report.comparison_markdown import markdown
from distill.report.comparison_table import csv_text
from distill.report.curves import read_curves
from distill.report.html import page
from distill.report.latex import latex
from distill.report.published import COMPARISON, is_published, published, refuse_damaged, set_aside, write_results
from distill.report.results import CellResult, damaged_records, read_result
from distill.store.atomic import write_bytes

_Reader: TypeAlias = Callable[[Cell], CellResult]
_STATES = ("finished", "failed", "missing")  # the best first
TABLE, CSV, TEX, PAGE = "table.md", "table.csv", "table.tex", "report.html"


def write_plan(recipe: Recipe, folder: Path, finished: Collection[str] = ()) -> None:
    """The recipe, in the comparison's folder. Numbers without runs that are of another one are set aside.

    Args:
        recipe: of the comparison.
        folder: the comparison's.
        finished: keys of cells whose numbers are in hand, to be written next.
    """
    if not is_plan(recipe, folder):
        if is_published(folder):
            set_aside(folder, finished)
        write_bytes(folder / COMPARISON, dump_recipe(recipe).encode())


def is_plan(recipe: Recipe, folder: Path) -> bool:
    """Whether a comparison's folder is for this very recipe."""
    path = folder / COMPARISON
    return path.is_file() and path.read_bytes() == dump_recipe(recipe).encode()


def damaged_comparison(folder: Path) -> list[str]:
    """A sentence for each of a comparison's own files that cannot be read: recipe, numbers, curves, cells' records."""
    problems = []
    for read in (
        partial(load_recipe, folder / COMPARISON),
        partial(refuse_damaged, folder),
        partial(read_curves, folder),
    ):
        try:
            read()
        except UserError as error:
            problems.append(error.message)
    return [*dict.fromkeys(problems), *damaged_records(folder)]


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """results.json, curves.csv, table.md, table.csv, table.tex and report.html."""
    write_results(comparison, folder)
    write_bytes(folder / TABLE, markdown(comparison).encode())
    write_bytes(folder / CSV, csv_text(comparison).encode())
    write_bytes(folder / TEX, latex(comparison).encode())
    write_bytes(folder / PAGE, page(comparison, folder).encode())


def read_comparison(folders: Sequence[Path]) -> Comparison:
    """What is known of a comparison, from its folders alone.

    Several folders hold parts of one comparison, other seeds for example: they agree in all but `[compare]`, and where
    both have a cell the first one's counts. A folder without runs is read from its results.json.

    Raises:
        RunError: one is no comparison's folder, or they are parts of different comparisons, or results.json is damaged.
        RecipeError: a recipe is damaged.
    """
    recipes = [_recipe(folder) for folder in folders]
    merged = recipes[0]
    for folder, recipe in zip(folders[1:], recipes[1:], strict=True):
        merged = _merged(merged, recipe, f"{folder}: not a part of the comparison in {folders[0]}")
    readers = [_reader(folder) for folder in folders]
    return Comparison(merged, tuple(_result(folders, readers, cell) for cell in grid(merged)))


def _recipe(folder: Path) -> Recipe:
    if not (folder / COMPARISON).is_file():
        raise RunError(
            f"{folder}: not a comparison, expected {COMPARISON} in it",
            cure="give a folder that `distill compare` made.",
        )
    return load_recipe(folder / COMPARISON)


def _reader(folder: Path) -> _Reader:
    return published(folder) if is_published(folder) else partial(read_result, folder)


def _result(folders: Sequence[Path], readers: Sequence[_Reader], cell: Cell) -> CellResult:
    """The best that the folders know of a cell; with several folders its run is named from here."""
    found = [(folder, read(cell)) for folder, read in zip(folders, readers, strict=True)]
    folder, result = min(found, key=lambda each: _STATES.index(each[1].state))
    return replace(result, run=(folder / result.run).as_posix()) if result.run and len(folders) > 1 else result


def _merged(one: Recipe, other: Recipe, place: str) -> Recipe:
    """With the arms, seeds, losses, temperatures and weights of both."""
    changed = differences(one, other, ("data", "views", "teacher", "export", "student"))
    changed = [line for line in changed if not line.startswith(PLACES)]
    first, second = one.compare, other.compare
    if first.first != second.first:
        changed.append(f"compare.reference: {first.first} -> {second.first}")
    if first.pairs != second.pairs:
        changed.append(f"compare.pairs: {first.pairs} -> {second.pairs}")
    for name in ("temperatures", "weights") if first.students and second.students else ():
        # Together every cell would have one, and the results of the part without would have no place.
        one_has, other_has = list(getattr(first, name)), list(getattr(second, name))
        if bool(one_has) != bool(other_has):
            changed.append(f"compare.{name}: {one_has} -> {other_has}")
    for name in set(first.names) & set(second.names):
        if first.assignments(name) != second.assignments(name):
            changed.append(f"compare.arms.{name}: {list(first.assignments(name))} -> {list(second.assignments(name))}")
    if changed:
        raise RunError(f"{place}: {'; '.join(changed)}", cure="report on it by itself.")
    lists = ("seeds", "temperatures", "weights")
    update: dict[str, Any] = {
        name: tuple(dict.fromkeys([*getattr(first, name), *getattr(second, name)])) for name in lists
    }
    if first.losses or second.losses:
        own = (one.student.loss.name,)
        update["losses"] = tuple(dict.fromkeys([*(first.losses or own), *(second.losses or own)]))
    if first.arms or second.arms:
        arms = {name: each.assignments(name) for each in (first, second) for name in each.names}
        update |= {"arms": arms, "teachers": CompareRecipe.model_fields["teachers"].default}
    else:
        update["teachers"] = tuple(dict.fromkeys([*first.teachers, *second.teachers]))
    update |= {"students": first.students or second.students, "controls": first.controls or second.controls}
    return one.model_copy(update={"compare": first.model_copy(update=update)})

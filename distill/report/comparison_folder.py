"""A comparison's folder: its recipe, the cells' results, the tables. Read and written without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.errors import RunError
from distill.recipe.grid import grid
from distill.recipe.load import dump_recipe, load_recipe
from distill.recipe.schema import Recipe
from distill.report.comparison import Comparison
from distill.report.comparison_table import csv_text, markdown
from distill.report.results import read_result
from distill.store.atomic import write_bytes, write_json

COMPARISON = "comparison.toml"  # the recipe of a comparison's folder
RESULTS, TABLE, CSV = "results.json", "table.md", "table.csv"


def write_plan(recipe: Recipe, folder: Path) -> None:
    """The recipe, in the comparison's folder."""
    path, text = folder / COMPARISON, dump_recipe(recipe).encode()
    if not path.is_file() or path.read_bytes() != text:
        write_bytes(path, text)


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """results.json, table.md and table.csv."""
    write_json(folder / RESULTS, {"schema_version": 1, **comparison.record()})
    write_bytes(folder / TABLE, markdown(comparison).encode())
    write_bytes(folder / CSV, csv_text(comparison).encode())


def read_comparison(folders: Sequence[Path]) -> Comparison:
    """What is known of a comparison, from its folder alone.

    Raises:
        RunError: it is no comparison's folder.
        RecipeError: its recipe is damaged.
    """
    (folder,) = folders
    if not (folder / COMPARISON).is_file():
        raise RunError(
            f"{folder}: not a comparison, expected {COMPARISON} in it",
            cure="give a folder that `distill compare` made.",
        )
    recipe = load_recipe(folder / COMPARISON)
    return Comparison(recipe, tuple(read_result(folder, cell) for cell in grid(recipe)))

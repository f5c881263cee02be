"""The recipes and runs that a command names. What takes time to import is imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.recipe.schema import Recipe
    from distill.report.runs import Run


def load(path: Path, overrides: list[str], *, comparing: bool = False) -> Recipe:
    """A recipe with overrides, checked.

    Raises:
        RecipeError: it cannot be read, or its fields do not fit each other.
    """
    from distill.recipe.checks import check_recipe
    from distill.recipe.load import load_recipe

    recipe = load_recipe(path, overrides)
    check_recipe(recipe, str(path), comparing=comparing)
    return recipe


def found_run(text: str) -> Path:
    """The run folder of a name or a path."""
    from distill.report.run_names import find_run

    return find_run(text, Path("checkpoints"))


def named_run(text: str) -> Path | None:
    """The run of that name under the checkpoints folder."""
    from distill.report.run_names import run_named

    return run_named(text, Path("checkpoints"))


def found_folder(text: str) -> Path:
    """A run's name, a path, or where nothing is there, a name under the checkpoints folder; else it stays as it is.

    Not `found_run`: what is checked may be no run, and a file is nothing to be imported.

    Raises:
        RunError: the name is empty, or `~` in it cannot be spelled out.
    """
    from distill.report.run_names import given_path

    path, named = given_path(text), Path("checkpoints") / text
    if run := named_run(text):
        return run
    return named if not path.exists() and named.is_dir() else path


def teacher_run(text: str, overrides: list[str]) -> tuple[Run, Recipe]:
    """The teacher's run and its recipe as overridden."""
    from distill.recipe.checks import check_recipe
    from distill.recipe.load import override_run
    from distill.report.runs import open_run

    run = open_run(found_run(text))
    recipe = override_run(run.recipe, overrides)
    check_recipe(recipe, str(run.folder / "recipe.toml"))
    return run, recipe

"""What `distill compare` can be asked for, besides comparing. What takes time to import is imported inside."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from distill.cli.output import print_json

if TYPE_CHECKING:
    from distill.recipe.schema import Recipe
    from distill.report.comparison import Comparison
    from distill.training.events import Listener

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Asked:
    """How `distill compare` is to run, and to tell of it."""

    jobs: int
    budget: float | None  # seconds
    quiet: bool
    as_json: bool
    curves: bool


def seconds(text: str | None) -> float | None:
    """`90s`, `30m`, `1.5h`, `2d` in seconds.

    Raises:
        typer.BadParameter: it is no such time.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if found is None or not float(found[1]):
        raise typer.BadParameter(f"--budget: found {text!r}, expected a time such as 90s, 30m or 2h")
    return float(found[1]) * _UNITS[found[2]]


def refuse_together(**given: bool) -> None:
    """Refuses options that each ask for something else.

    Raises:
        typer.BadParameter: more than one is given.
    """
    names = [f"--{name.replace('_', '-')}" for name, on in given.items() if on]
    if len(names) > 1:
        raise typer.BadParameter(f"found {' and '.join(names)}, expected one of them")


def refuse_beside(option: str, why: str, **given: object) -> None:
    """Refuses options that mean nothing beside another.

    Args:
        option: the other, as it is typed.
        why: what it does that they have no part in.
        given: their values, by name; what is false was not given.

    Raises:
        typer.BadParameter: one is given.
    """
    names = [f"--{name}" for name, on in given.items() if on]
    if names:
        raise typer.BadParameter(f"found {' and '.join(names)} with {option}, which {why}; leave it out")


def one_recipe(paths: Sequence[Path]) -> Path:
    """The only path.

    Raises:
        typer.BadParameter: there are several.
    """
    if len(paths) > 1:
        raise typer.BadParameter(f"found {len(paths)} paths, expected one recipe; --report-only takes several folders")
    return paths[0]


def report(folders: Sequence[Path], quiet: bool, as_json: bool) -> None:
    """The tables of comparisons whose runs are there, written into the first folder. Imports no torch."""
    from distill.report.comparison_folder import read_comparison, write_comparison, write_plan

    comparison = read_comparison(folders)
    if len(folders) > 1:  # what is read from results.json goes by the recipe beside it
        write_plan(comparison.recipe, folders[0], comparison.finished)
    write_comparison(comparison, folders[0])
    show(comparison, folders[0], None, None, quiet, as_json)


def plan(recipe: Recipe, listener: Listener, asked: Asked, *, every_cell: bool) -> Callable[[], None]:
    """What would be run, to be printed; `every_cell`: a line for each."""
    from distill.stages.plan import plan_grid

    found = plan_grid(recipe, listener, jobs=asked.jobs, budget=asked.budget)
    if asked.as_json:
        return lambda: print_json(found.lines_record() if every_cell else found.record())
    return lambda: print(found.lines() if every_cell else found.text())


def compare(recipe: Recipe, listener: Listener, asked: Asked) -> Callable[[], None]:
    """Runs a comparison; the table, to be printed, with the exit code that its failures make."""
    from distill.stages.compare import compare as compare_arms
    from distill.stages.run_grid import Manner

    found = compare_arms(recipe, listener, Manner(jobs=asked.jobs, budget=asked.budget, curves=asked.curves))

    def tell() -> None:
        example = found.example.folder if found.example else None
        show(found.comparison, found.folder, example, found.picture, asked.quiet, asked.as_json)
        if found.exit_code:
            if asked.quiet:  # else the table and the notices have said it
                _tell_unfinished(found.comparison, found.undrawn)
            raise typer.Exit(found.exit_code)

    return tell


def _tell_unfinished(comparison: Comparison, undrawn: str) -> None:
    """What went wrong, on standard error: errors are what `--quiet` still says."""
    from distill.report.comparison_table import unfinished_lines

    for line in [*unfinished_lines(comparison), *([undrawn] if undrawn else [])]:
        print(f"error: {line}", file=sys.stderr)


def one_cell(recipe: Recipe, listener: Listener, asked: Asked, number: int) -> Callable[[], None]:
    """Runs a cell; its run folder, to be printed."""
    from distill.stages.compare import run_one

    run = run_one(recipe, number, listener)
    if asked.as_json:
        return lambda: print_json({"cell": number, "folder": str(run.folder), **run.record.model_dump(mode="json")})
    return lambda: None if asked.quiet else print(f"cell {number}: {run.folder}")


def show(
    comparison: Comparison, folder: Path, example: Path | None, picture: Path | None, quiet: bool, as_json: bool
) -> None:
    """A comparison on standard output."""
    if as_json:
        from distill.report.comparison_folder import PAGE

        where = {"folder": str(folder), "report": str(folder / PAGE), "picture": str(picture) if picture else None}
        print_json({**comparison.record(), **where})
    elif not quiet:
        from distill.report.console import console, print_comparison

        print_comparison(console(), comparison, folder, example, picture)

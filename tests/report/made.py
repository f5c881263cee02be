"""Comparisons with made-up numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from distill.recipe.grid import Cell, grid
from distill.recipe.load import parse_recipe
from distill.report.comparison import Comparison
from distill.report.curves import CellCurves
from distill.report.results import CellResult

METRICS = {
    "test_accuracy": 0.98765,
    "test_nll": 0.5,
    "test_ece": 0.25,
    "validation_accuracy": 1.0,
    "best_test_accuracy": 1.0,
    "best_epoch": 120.0,
    "given_right": 0.7,
    "labels_right": 1.0,
    "labels_moved": 0.3,
}
PROVENANCE: dict[str, Any] = {"commit": "abc", "digest": "0", "machine": {"device": "cpu: 1 threads"}}


def made(
    *assignments: str,
    metrics: Callable[[Cell], Mapping[str, float]] = lambda cell: METRICS,
    missing: Collection[str] = (),
    curves: Callable[[Cell], CellCurves] = lambda cell: {},
) -> Comparison:
    """A comparison of onehot and instance, at seed 0 and 1, without controls unless the assignments say otherwise.

    Args:
        assignments: as --set takes them.
        metrics: of a finished cell.
        missing: keys of cells that are not.
        curves: of a finished teacher.
    """
    first = ["compare.teachers=onehot,instance", "compare.seeds=0,1", "compare.controls=false"]
    recipe = parse_recipe('name = "r"', "r.toml", [*first, *assignments])
    return Comparison(recipe, tuple(_result(cell, metrics, cell.key in missing, curves) for cell in grid(recipe)))


def _result(
    cell: Cell, metrics: Callable[[Cell], Mapping[str, float]], missing: bool, curves: Callable[[Cell], CellCurves]
) -> CellResult:
    if missing:
        return CellResult(cell, "failed", "the disk is full")
    temperature = cell.temperature if cell.kind == "student" else None
    known = curves(cell) if cell.kind == "teacher" else {}
    return CellResult(cell, "finished", "", cell.key, temperature, 1.0, metrics(cell), PROVENANCE, known)

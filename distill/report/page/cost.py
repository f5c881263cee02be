"""What a comparison cost. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from distill.recipe.grid import ALONE, SMOOTHING, UNTRAINED
from distill.report.comparison import Comparison
from distill.report.page.markup import Markup
from distill.report.page.numbers import number
from distill.report.page.table import table, table_row
from distill.report.results import CellResult

_HEAD = ("what", "cells", "seconds each", "seconds in all")


def cost(comparison: Comparison) -> Markup | None:
    """Seconds of each kind of cell; None where none is finished."""
    finished = [result for result in comparison.results if result.state == "finished"]
    if not finished:
        return None
    groups = []
    compare = comparison.recipe.compare
    logits = ", with its logits" if compare.students else ""
    for arm in (*compare.names, UNTRAINED):
        groups.append([_row(f"teacher {arm}{logits}", _of(finished, "teacher", arm))])
        students = [r for r in _of(finished, "student", arm) if r.cell.control not in (ALONE, SMOOTHING)]
        groups[-1].append(_row(f"a student of {arm}", students))
    groups.append([_row("a student alone (controls)", [r for r in finished if r.cell.control in (ALONE, SMOOTHING)])])
    groups.append([_row("whole grid", finished, each=False)])
    bodies = [[row for row in group if row] for group in groups]
    note = (
        "Wall-clock seconds of training, evaluation and export as the runs recorded them, added up over cells: with "
        "several jobs side by side the grid took less. Energy was not measured and is not claimed."
    )
    return table(_HEAD, [[row for row in body if row] for body in bodies if body], words=1, caption=note)


def _of(results: Iterable[CellResult], kind: str, arm: str) -> list[CellResult]:
    return [result for result in results if (result.cell.kind, result.cell.arm) == (kind, arm)]


def _row(what: str, results: list[CellResult], *, each: bool = True) -> Markup | None:
    if not results:
        return None
    seconds = [result.seconds for result in results]
    mean = f"{sum(seconds) / len(seconds):,.1f}" if each else ""
    texts = [what, str(len(results)), mean, f"{sum(seconds):,.0f}"]
    return table_row(_HEAD, [what, *map(number, texts[1:])], texts, words=1)

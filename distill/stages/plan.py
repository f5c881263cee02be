"""What a comparison would run, and what that would cost by the cells that are finished. Runs and writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from distill.recipe.grid import Cell
from distill.recipe.schema import Recipe
from distill.stages.cells import Outcome
from distill.stages.compare import planned, seconds_of
from distill.stages.grid import finished_cells
from distill.stages.held import refuse_other_teachers
from distill.stages.run_grid import duration
from distill.stages.schedule import Schedule
from distill.training.events import Listener


@dataclass(frozen=True)
class GridPlan:
    """The cells, and which of them are finished."""

    name: str
    cells: tuple[Cell, ...]
    finished: Mapping[int, float]  # seconds by number
    jobs: int = 1
    budget: float | None = None  # seconds

    def lines(self) -> str:
        """A line for each cell: number, kind, state, the teacher's number or -, key."""
        lines = []
        for cell in self.cells:
            needs = "-" if cell.needs is None else cell.needs
            lines.append(f"{cell.number:4}  {cell.kind:7}  {self._state(cell):8}  {needs:>4}  {cell.key}")
        return "\n".join(lines)

    def lines_record(self) -> dict[str, Any]:
        """The same, for `--json`."""
        weights = any(cell.recipe.compare.weights for cell in self.cells)
        own = ("loss", "temperature", *(("weight",) if weights else ()))
        names = ("number", "key", "kind", "arm", "seed", *own, "control", "needs")
        cells = [{name: getattr(cell, name) for name in names} | {"state": self._state(cell)} for cell in self.cells]
        return {"name": self.name, "cells": cells}

    def text(self) -> str:
        """For people: how many cells, how many are finished, what the others cost."""
        kinds = Counter(cell.kind for cell in self.cells)
        head = f"{self.name}: {len(self.cells)} cells, {_counted(kinds['teacher'], 'teacher')}"
        head += f" and {_counted(kinds['student'], 'student')}; {len(self.finished)} finished"
        return "\n".join([head, *self._groups(), *self._end()])

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        schedule = self._schedule()
        return {
            "name": self.name,
            "cells": len(self.cells),
            "finished": len(self.finished),
            "seconds_left": schedule.seconds_left(self.jobs),
            "left_out": [cell.number for cell in self.left_out()],
        }

    def left_out(self) -> list[Cell]:
        """Cells that the budget would not reach, by what is known of their cost."""
        if self.budget is None:
            return []
        now = 0.0
        schedule = Schedule(self.cells, self.finished, self.budget * self.jobs, lambda: now)
        while (cell := schedule.take()) is not None:
            seconds = schedule.costs.of(cell) or 0.0
            now += seconds
            schedule.done(Outcome(cell.number, "finished", seconds))
        return schedule.waiting()

    def _schedule(self) -> Schedule:
        return Schedule(self.cells, self.finished)

    def _state(self, cell: Cell) -> str:
        return "finished" if cell.number in self.finished else "open"

    def _groups(self) -> Iterator[str]:
        """A line for each kind of cell: students of an arm by loss, temperature and weight, over all seeds."""
        costs = self._schedule().costs

        def kind(cell: Cell) -> str:
            return str(cell).rpartition(", seed ")[0]

        for name, group in groupby(sorted(self.cells, key=kind), kind):
            cells = list(group)
            done = sum(cell.number in self.finished for cell in cells)
            seconds = costs.of(cells[0])
            each = "cost not known" if seconds is None else f"about {duration(seconds)} each"
            yield f"  {name}: {_counted(len(cells), 'cell')}, {done} finished, {each}"

    def _end(self) -> Iterator[str]:
        left = self._schedule().seconds_left(self.jobs)
        if len(self.finished) == len(self.cells):
            yield "nothing left to run"
        elif left is None:
            yield "cost: not known before a cell of each kind is finished"
        else:
            beside = f", {self.jobs} cells at a time" if self.jobs > 1 else ""
            yield f"cost: about {duration(left)} by the finished cells{beside}"
        if out := self.left_out():
            yield f"left out by the budget: {_counted(len(out), 'cell')}, the first of them {out[0]}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def plan_grid(recipe: Recipe, listener: Listener, *, jobs: int = 1, budget: float | None = None) -> GridPlan:
    """Looks up what is finished.

    Raises:
        UserError: the recipe breaks a rule, a data set is missing, or the folder holds another recipe's teachers.
    """
    cells = planned(recipe)
    refuse_other_teachers(cells)  # as the command that would run them does
    found = finished_cells(cells, listener)
    return GridPlan(recipe.name, cells, {number: seconds_of(run) for number, run in found.items()}, jobs, budget)

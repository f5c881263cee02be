"""Which cell of a comparison comes next, what is left out, and how long the rest takes. No torch, no processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from distill.recipe.grid import Cell
from distill.stages.cells import Outcome


class Costs:
    """Seconds of cells that are finished, and what others are expected to take by them."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, ...], list[float]] = {}

    def add(self, cell: Cell, seconds: float) -> None:
        """One more finished cell."""
        for kind in _kinds(cell):
            self._seconds.setdefault(kind, []).append(seconds)

    def of(self, cell: Cell) -> float | None:
        """Mean of the cells that are most like this one; None where there is none of its kind."""
        known = (self._seconds[kind] for kind in _kinds(cell) if kind in self._seconds)
        return next(map(fmean, known), None)

    def total(self, cells: Iterable[Cell]) -> float | None:
        """Of them all; None where one cannot be estimated."""
        each = [self.of(cell) for cell in cells]
        found = [seconds for seconds in each if seconds is not None]
        return sum(found) if len(found) == len(each) else None


def _kinds(cell: Cell) -> tuple[tuple[str, ...], ...]:
    """What cells may have in common, the most telling first. An untrained teacher's time is nobody else's."""
    if cell.kind == "teacher":
        own = (cell.kind, cell.arm)
        return (own,) if cell.control else (own, (cell.kind,))
    return ((cell.kind, cell.arm, cell.loss), (cell.kind, "", cell.loss), (cell.kind,))


class Schedule:
    """The cells of a run of a comparison, in order, each after what it needs.

    Args:
        cells: of the whole grid, numbered from 0.
        finished: seconds of those that are on disk, by number.
        budget: seconds from now on; None: no end. A cell that is not expected to end within it is left out; one whose
            kind has not been seen is begun as long as there is time.
        clock: seconds.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        finished: Mapping[int, float],
        budget: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cells = cells
        self.costs = Costs()
        self.finished = set(finished)
        self.running: set[int] = set()
        self.failed: dict[int, Outcome] = {}
        self._clock = clock
        self._end = None if budget is None else clock() + budget
        for number, seconds in finished.items():
            self.costs.add(cells[number], seconds)

    def take(self) -> Cell | None:
        """The next cell to be run, which counts as running from now on; None where there is none at the moment."""
        cell = self._next()
        if cell is not None:
            self.running.add(cell.number)
        return cell

    def done(self, outcome: Outcome) -> list[Outcome]:
        """Notes what became of a running cell; the failures of the cells that cannot be run without it."""
        self.running.discard(outcome.number)
        cell = self.cells[outcome.number]
        if outcome.state == "finished":
            self.finished.add(cell.number)
            self.costs.add(cell, outcome.seconds)
        if outcome.state != "failed":
            return []
        self.failed[cell.number] = outcome
        reason = f"its teacher, cell {cell.number}, failed"
        blocked = [Outcome(each.number, "failed", reason=reason) for each in self.cells if each.needs == cell.number]
        blocked = [each for each in blocked if each.number not in self.finished]
        self.failed |= {each.number: each for each in blocked}
        return blocked

    def over(self) -> bool:
        """Whether nothing is running and nothing more will be; what still waits is then what the budget left out."""
        return not self.running and self._next() is None

    def waiting(self) -> list[Cell]:
        """Cells that are not begun."""
        return [cell for cell in self.cells if self._waits(cell)]

    def seconds_left(self, jobs: int) -> float | None:
        """Until the last cell is done, at most; None where it cannot be said."""
        under_way = [self.cells[number] for number in sorted(self.running)]
        total = self.costs.total([*under_way, *self.waiting()])
        return None if total is None else total / jobs

    def _next(self) -> Cell | None:
        # Costs are known better and better, so a cell that does not fit now is looked at again.
        return next((cell for cell in self.cells if self._waits(cell) and self._ready(cell) and self._fits(cell)), None)

    def _waits(self, cell: Cell) -> bool:
        return not any(cell.number in numbers for numbers in (self.finished, self.running, self.failed))

    def _ready(self, cell: Cell) -> bool:
        return cell.needs is None or cell.needs in self.finished

    def _fits(self, cell: Cell) -> bool:
        return self._end is None or self._clock() + (self.costs.of(cell) or 0.0) < self._end

"""The cells of a comparison, one after the other in this process, or several beside each other in processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.errors import StoreError, UserError
from distill.recipe.grid import Cell
from distill.report.results import UnrecordedError, write_failed
from distill.stages.cells import Outcome, attempt
from distill.stages.schedule import Schedule
from distill.stages.workers import Worker, end, waited
from distill.training.events import Listener, Notice
from distill.training.interrupt import Interrupted, listen_for_stop

_LOOK = 0.2  # seconds between looks at whether a signal asked to stop


@dataclass(frozen=True)
class Manner:
    """How a comparison is run."""

    jobs: int = 1  # cells beside each other
    budget: float | None = None  # seconds in which cells may be run
    curves: bool = False  # tensorboard files, of cells in other processes


def run_cells(schedule: Schedule, folder: Path, manner: Manner, listener: Listener) -> None:
    """Runs what the schedule gives until there is nothing left; what failed and was left out, the schedule knows.

    Raises:
        StoreError: the disk is full, or what became of a cell cannot be written down: no other cell is begun then.
        Interrupted: asked to stop; what was trained is saved, and the same call goes on from there.
    """
    if schedule.finished:
        listener(Notice(f"{len(schedule.finished)} of {len(schedule.cells)} cells are finished already"))
    try:
        if manner.jobs == 1:
            _here(schedule, folder, listener)
        elif not schedule.over():
            _beside(schedule, folder, manner, listener)
    except UnrecordedError as error:
        raise _stopped(schedule, error) from error
    if schedule.waiting():
        count = len(schedule.waiting())
        listener(
            Notice(f"budget: {count} cell{'' if count == 1 else 's'} left out; the same command goes on with them")
        )


def _here(schedule: Schedule, folder: Path, listener: Listener) -> None:
    while (cell := schedule.take()) is not None:
        left = _left(schedule, 1)
        listener(Notice(f"cell {cell.number}, {_count(schedule)}: {cell}{left and '; '}{left}"))
        outcome = attempt(cell, folder, listener)
        _note(schedule, folder, outcome)
        if outcome.state == "failed":
            listener(Notice(_told(cell, outcome)))


def _beside(schedule: Schedule, folder: Path, manner: Manner, listener: Listener) -> None:
    jobs = min(manner.jobs, len(schedule.waiting()))
    threads = _threads(schedule.cells, manner.jobs)
    listener(Notice(f"{jobs} cells at a time, {threads} thread{'' if threads == 1 else 's'} each"))
    workers: list[Worker] = []
    warned: set[str] = set()
    with listen_for_stop() as stop:
        try:
            while not schedule.over() and not stop:
                workers = [worker for worker in workers if worker.alive or worker.cell is not None]
                _hand_out(schedule, workers, folder, jobs, threads, curves=manner.curves)
                for worker in waited(workers, _LOOK):
                    _heed(schedule, worker, manner.jobs, warned, listener)
        finally:
            end(workers)
    if stop:
        raise Interrupted("compare", f"after {len(schedule.finished)} of {len(schedule.cells)} cells")


def _hand_out(
    schedule: Schedule, workers: list[Worker], folder: Path, jobs: int, threads: int, *, curves: bool
) -> None:
    """Gives cells to idle workers, and makes workers where there are fewer than jobs."""
    idle = [worker for worker in workers if worker.cell is None]
    while len(schedule.running) < jobs and (cell := schedule.take()) is not None:
        if idle:
            worker = idle.pop()
        else:
            worker = Worker()
            workers.append(worker)
        worker.run(cell, folder, threads, curves=curves)


def _heed(schedule: Schedule, worker: Worker, jobs: int, warned: set[str], listener: Listener) -> None:
    """What a worker has to say of its cell, if anything; what several are warned of is said of the first."""
    cell, outcome = worker.cell, worker.heard()
    if cell is None or outcome is None:
        return
    if isinstance(outcome, Notice):
        if outcome.message not in warned:
            warned.add(outcome.message)
            listener(Notice(f"{cell}: {outcome.message}"))
        return
    _note(schedule, worker.folder, outcome)  # a cell that was interrupted by itself comes again
    if outcome.state == "interrupted":
        return
    if outcome.state == "failed":
        listener(Notice(_told(cell, outcome)))
        return
    judged = "" if outcome.validation is None else f", validation {100 * outcome.validation:.1f} %"
    left = _left(schedule, jobs)
    done = f"{len(schedule.finished)} of {len(schedule.cells)}"
    listener(Notice(f"{done}: {cell}, {duration(outcome.seconds)}{judged}{left and '; '}{left}"))


def _note(schedule: Schedule, folder: Path, outcome: Outcome) -> None:
    """What became of a cell, and of those that cannot be run without it.

    Raises:
        StoreError: the cells after it need not be begun.
    """
    without = schedule.done(outcome)
    if outcome.ends is not None:
        raise _stopped(schedule, outcome.ends)
    for blocked in without:
        write_failed(folder, schedule.cells[blocked.number], blocked.reason)


def _stopped(schedule: Schedule, error: UserError) -> StoreError:
    """The error with what became of the comparison."""
    kept = f"{len(schedule.finished)} of {len(schedule.cells)} cells are finished"
    told = f"the comparison stopped: {kept}, what is trained is kept, and the same command goes on from there"
    return StoreError(f"{error.message}; {told}", cure=error.cure)


def _threads(cells: Sequence[Cell], jobs: int) -> int:
    """Threads of each of several cells beside each other, in all as many as one alone would have."""
    threads = cells[0].recipe.threads
    if not threads:
        import torch

        threads = torch.get_num_threads()
    return max(1, threads // jobs)


def _count(schedule: Schedule) -> str:
    """`3 of 12`, of the cell that is about to run."""
    behind = len(schedule.finished) + len(schedule.failed) + len(schedule.running)
    return f"{behind} of {len(schedule.cells)}"


def _left(schedule: Schedule, jobs: int) -> str:
    seconds = schedule.seconds_left(jobs)
    return f"about {duration(seconds)} left" if seconds else ""


def _told(cell: Cell, outcome: Outcome) -> str:
    return f"failed: cell {cell.number}, {cell}, after {duration(outcome.seconds)}: {outcome.reason}"


def duration(seconds: float) -> str:
    """`41 s`, `12 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

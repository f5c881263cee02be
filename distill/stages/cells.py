"""One cell of a comparison: trained, and what came of it written down. torch is imported when a cell runs."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill.errors import RunError, UserError
from distill.recipe.grid import Cell
from distill.report.results import write_failed, write_finished
from distill.report.runs import RECORD, Run, open_run
from distill.training.events import Listener
from distill.training.interrupt import Interrupted


@dataclass(frozen=True)
class Outcome:
    """What became of a cell that was run."""

    number: int
    state: Literal["finished", "failed", "interrupted"]
    seconds: float = 0.0  # of wall time
    reason: str = ""
    fault: bool = False  # whether it failed by no mistake of the user's
    validation: float | None = None  # accuracy, of the last epoch


def run_cell(cell: Cell, listener: Listener) -> Run:
    """Trains a cell, or finds it trained; a teacher's logits are exported where the grid has students.

    Raises:
        UserError: anything that the user can mend.
        Interrupted: asked to stop; the same call goes on from there.
    """
    from distill.stages.pipeline import run_teacher
    from distill.stages.student import train_student

    if cell.kind == "teacher":
        return run_teacher(cell.recipe, listener, export=cell.exports)
    if not (cell.teacher_folder / RECORD).exists():
        raise RunError(
            f"{cell.teacher_folder}: the student of cell {cell.number} needs its teacher, cell {cell.needs}",
            cure=f"run that first: --cell {cell.needs}",
        )
    return train_student(open_run(cell.teacher_folder), cell.recipe, listener)


def attempt(cell: Cell, folder: Path, listener: Listener) -> Outcome:
    """Runs a cell and writes down what came of it; whatever goes wrong is the cell's alone.

    Args:
        cell: the cell.
        folder: the comparison's.
        listener: told of the progress.

    Raises:
        Interrupted, KeyboardInterrupt: asked to stop.
    """
    began = time.monotonic()
    try:
        run = run_cell(cell, listener)
        write_finished(folder, cell, run)
    except Interrupted:
        raise
    except Exception as error:
        fault = not isinstance(error, UserError)
        reason = reason_of(error)
        write_failed(folder, cell, reason, "".join(traceback.format_exception(error)) if fault else "")
        return Outcome(cell.number, "failed", time.monotonic() - began, reason, fault)
    validation = run.metrics(cell.kind).get("validation_accuracy")
    return Outcome(cell.number, "finished", time.monotonic() - began, validation=validation)


def reason_of(error: Exception) -> str:
    """A user's mistake with its cure, or what the program stumbled over, in one line."""
    if isinstance(error, UserError):
        return " -> ".join(part for part in (error.message, error.cure) if part)
    told = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {told}" if told else type(error).__name__

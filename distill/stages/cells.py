"""One cell of a comparison: trained, and what came of it written down. torch is imported when a cell runs."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill.errors import StoreError, UserError
from distill.recipe.grid import Cell
from distill.report.results import UnrecordedError, write_failed, write_finished
from distill.report.runs import Run, open_run
from distill.store.atomic import NO_SPACE, is_full
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
    ends: UserError | None = None  # why the cells after it need not be begun: they would fail by the same


def run_cell(cell: Cell, folder: Path, listener: Listener) -> Run:
    """Trains a cell, or finds it trained, and writes down what came of it.

    Args:
        cell: the cell; a teacher's logits are exported where the grid has students.
        folder: the comparison's.
        listener: told of the progress.

    Raises:
        UnrecordedError: that cannot be written.
        UserError: anything else that the user can mend.
        Interrupted: asked to stop; the same call goes on from there.
    """
    try:
        run = _trained(cell, listener)
    except Interrupted:
        raise
    except Exception as error:
        told = "" if isinstance(error, UserError) else "".join(traceback.format_exception(error))
        reason = error.message if isinstance(error, UserError) else reason_of(error)
        with saying(f"cell {cell.number}, {cell}, failed: {reason}"):
            write_failed(folder, cell, reason_of(error), told)
        raise
    with saying(f"cell {cell.number}, {cell}, is finished"):
        write_finished(folder, cell, run)
    return run


@contextmanager
def saying(unsaid: str) -> Iterator[None]:
    """Adds to the error of a record that cannot be written what it was to say, as nothing else says it."""
    try:
        yield
    except UnrecordedError as error:
        raise UnrecordedError(f"{error.message}; it was to say that {unsaid}", cure=error.cure) from error


def _trained(cell: Cell, listener: Listener) -> Run:
    from distill.stages.pipeline import run_teacher
    from distill.stages.student import train_student

    if cell.kind == "teacher":
        return run_teacher(cell.recipe, listener, export=cell.exports)
    return train_student(open_run(cell.teacher_folder), cell.recipe, listener)


def attempt(cell: Cell, folder: Path, listener: Listener) -> Outcome:
    """`run_cell`, but whatever goes wrong is told by the outcome.

    Raises:
        Interrupted, KeyboardInterrupt: asked to stop.
    """
    import distill.stages.pipeline  # noqa: F401 - once a process, so it is no part of what cells cost

    began = time.monotonic()
    try:
        run = run_cell(cell, folder, listener)
    except Interrupted:
        raise
    except Exception as error:
        fault = not isinstance(error, UserError)
        seconds = time.monotonic() - began
        return Outcome(cell.number, "failed", seconds, reason_of(error), fault, ends=_ends(error))
    validation = run.metrics(cell.kind).get("validation_accuracy")
    return Outcome(cell.number, "finished", time.monotonic() - began, validation=validation)


def _ends(error: Exception) -> UserError | None:
    """See `Outcome`: what fills the disk fails each of the others too, be it after an epoch of hours."""
    if isinstance(error, UnrecordedError):
        return error
    if not is_full(error):
        return None
    return error if isinstance(error, UserError) else StoreError(reason_of(error), cure=NO_SPACE)


def reason_of(error: Exception) -> str:
    """A user's mistake with its cure, or what the program stumbled over, in one line."""
    if isinstance(error, UserError):
        return " -> ".join(part for part in (error.message, error.cure) if part)
    told = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {told}" if told else type(error).__name__

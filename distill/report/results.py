"""What the cells of a comparison left on disk: a small file for each, and the runs' own records. No torch.

`cells/<key>.json` in the comparison's folder says where a cell's run lies, or why there is none; numbers are read from
the run itself. So a cluster's jobs need no common file, and a folder can be reported on any machine that has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distill.errors import RunError, StoreError, UserError
from distill.recipe.digest import another_student, teacher_digest
from distill.recipe.grid import Cell
from distill.report.curves import CellCurves, run_curves
from distill.report.runs import Run, StageRecord, open_run
from distill.store.atomic import leads_out, mendable, writable_folder
from distill.store.json_files import read_json, write_json

CELLS = "cells"  # in a comparison's folder
NOT_RUN = "not run"  # the reason of a cell that nothing is known of
State: TypeAlias = Literal["finished", "failed", "missing"]


class UnrecordedError(StoreError):
    """What became of a cell cannot be written down, for which the cell may be no reason."""


class CellRecord(BaseModel):
    """cells/<key>.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    state: Literal["finished", "failed"]
    run: str = Field(default="", description="The run folder, from the comparison's folder.")
    digest: str = Field(default="", description="Of the run's stage: whether the run is still this cell's.")
    reason: str = Field(default="", description="Why it failed.")
    traceback: str = Field(default="", description="Of a failure that is no mistake of the user's.")


@dataclass(frozen=True)
class CellResult:
    """A cell of the grid and what is known of it. Metrics are those of run.json."""

    cell: Cell
    state: State
    reason: str = ""
    run: str = ""
    temperature: float | None = None  # a student's, as settled
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)  # digest, commit, versions, machine
    curves: CellCurves = field(default_factory=dict)  # a teacher's; in curves.csv, not in results.json

    def record(self) -> dict[str, Any]:
        """For results.json."""
        cell = self.cell
        return {
            "key": cell.key,
            "number": cell.number,
            "kind": cell.kind,
            "arm": cell.arm,
            "seed": cell.seed,
            "loss": cell.loss or None,
            "temperature": self.temperature,
            **({"weight": cell.weight} if cell.recipe.compare.weights else {}),
            "control": cell.control or None,
            "state": self.state,
            "reason": self.reason or None,
            "run": self.run or None,
            "seconds": self.seconds,
            "metrics": dict(self.metrics),
            **self.provenance,
        }


def write_finished(folder: Path, cell: Cell, run: Run) -> None:
    """Says where a finished cell's run lies.

    Args:
        folder: the comparison's.
        cell: the cell.
        run: a finished one, in that folder.

    Raises:
        UnrecordedError: it cannot be written.
    """
    place = run.folder.resolve().relative_to(folder.resolve()).as_posix()
    record = CellRecord(key=cell.key, state="finished", run=place, digest=run.record.stages[cell.kind].digest)
    _write(folder, record)


def write_failed(folder: Path, cell: Cell, reason: str, traceback: str = "") -> None:
    """Says why a cell has no run. A finished one has: another process may be at work in it, or have finished it.

    Raises:
        UnrecordedError: it cannot be written.
    """
    if read_result(folder, cell).state != "finished":
        _write(folder, CellRecord(key=cell.key, state="failed", reason=reason, traceback=traceback))


def forget_others(folder: Path, cells: Sequence[Cell], wanted: Mapping[int, str]) -> None:
    """Forgets where the runs of cells lie that ask for others by now: other images, given labels, teachers, students.

    Args:
        folder: the comparison's.
        cells: of the comparison.
        wanted: digests that their runs would have, by number; of a cell that is not among them nothing is known.
    """
    for cell in cells:
        path = folder / CELLS / f"{cell.key}.json"
        record = _read(path) if path.is_file() else None
        if record is None or record.state != "finished":
            continue
        if wanted.get(cell.number, record.digest) != record.digest:
            path.unlink(missing_ok=True)  # another process may have done so


def _write(folder: Path, record: CellRecord) -> None:
    path = folder / CELLS / f"{record.key}.json"
    try:
        if not path.is_file() or _read(path) != record:
            writable_folder(path.parent)
            write_json(path, record.model_dump(mode="json"))
    except StoreError as error:
        raise UnrecordedError(error.message, cure=error.cure) from error
    except OSError as error:  # a folder that may not be entered
        found = mendable(path, "read", error)
        raise UnrecordedError(found.message, cure=found.cure) from error


def _read(path: Path) -> CellRecord | None:
    """None where the file is damaged: the cell is then one that nothing is known of."""
    try:
        return CellRecord.model_validate(read_json(path))
    except (UserError, ValidationError):
        return None


def damaged_records(folder: Path) -> list[str]:
    """A sentence for each cell of a comparison's folder whose record cannot be read."""
    paths = sorted((folder / CELLS).glob("*.json"))
    return [f"{path}: damaged; its cell counts as not run" for path in paths if _read(path) is None]


def read_result(folder: Path, cell: Cell) -> CellResult:
    """What is known of a cell in a comparison's folder."""
    path = folder / CELLS / f"{cell.key}.json"
    record = _read(path) if path.is_file() else None
    if record is None:
        return CellResult(cell, "missing", NOT_RUN)
    if record.state == "failed":
        return CellResult(cell, "failed", record.reason)
    try:
        return _result(folder, cell, record)
    except UserError as error:
        return CellResult(cell, "missing", error.message)


def _answers(export: StageRecord) -> dict[str, float]:
    """What a teacher's answers are like; they were measured when they were exported."""
    return {name: value for name, value in export.metrics.items() if name.startswith("answers_")}


def of_another_recipe(run: Run, cell: Cell) -> bool:
    """Whether a run has another teacher or student than a cell asks for, by their recipes alone.

    An imported teacher's run has filled in what the cell leaves open; it is its weights that count.
    """
    if cell.kind == "student":
        return another_student(cell.recipe, run.recipe)
    imported = cell.recipe.teacher.imported.source
    return not imported and teacher_digest(run.recipe) != teacher_digest(cell.recipe)


def _result(folder: Path, cell: Cell, record: CellRecord) -> CellResult:
    place = folder / record.run
    if leads_out(place, folder):
        raise RunError(f"{folder / CELLS / record.key}.json: names {record.run!r}, which is outside the folder")
    run = open_run(place)
    stage = run.record.stages.get(cell.kind)
    if stage is None or stage.digest != record.digest:
        raise RunError(f"{place}: is another {cell.kind}'s by now")
    if of_another_recipe(run, cell):
        raise RunError(f"{place}: its {cell.kind} is of another recipe than the comparison's")
    export = run.record.stages.get("export") if cell.kind == "teacher" else None
    return CellResult(
        cell,
        "finished",
        run=record.run,
        temperature=run.recipe.student.loss.temperature if cell.kind == "student" else None,
        seconds=stage.seconds + (export.seconds if export else 0.0),
        metrics={**stage.metrics, **(_answers(export) if export else {})},
        provenance={
            "digest": stage.digest,
            "commit": stage.commit,
            "finished": stage.finished,
            "machine": stage.machine,
            "versions": stage.versions,
        },
        curves=run_curves(run, run.recipe.teacher.epochs) if cell.kind == "teacher" else {},
    )

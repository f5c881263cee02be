"""Which cells of a comparison are finished, found by their digests; data are opened once a seed, not once a cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from distill.data.loader import open_data
from distill.errors import UserError
from distill.models import zoo
from distill.models.zoo import Fit
from distill.recipe.digest import digest, export_digest, inputs_digest, student_digest
from distill.recipe.grid import Cell
from distill.recipe.schema import Recipe
from distill.recipe.student_checks import label_rule
from distill.report.run_names import find_run
from distill.report.runs import RECORD, WEIGHTS, Run, StageRecord, open_run
from distill.stages.arms import arm_place
from distill.stages.finished import STORE
from distill.stages.settling import settle_student
from distill.stages.student import STUDENTS, student_inputs, student_name
from distill.stages.trial import placed
from distill.store.manifest import MANIFEST
from distill.store.tensors import sha256_of_tensor
from distill.training.events import Listener, files_read


@dataclass(frozen=True)
class _Data:
    """What digests and students' recipes ask of the data."""

    fingerprint: str
    given: str  # sha256 of the given labels
    shape: tuple[int, int, int]
    classes: int


@dataclass(frozen=True)
class LookedUp:
    """What is on disk of some cells, by their numbers."""

    finished: dict[int, Run]  # the runs of those that need not be trained
    wanted: dict[int, str]  # the digest that a cell's run would have, where that can be told; "": none that is there


def finished_cells(cells: Sequence[Cell], listener: Listener) -> dict[int, Run]:
    """The runs of the cells that need not be trained, by the cells' numbers; see `look_up`."""
    return look_up(cells, listener).finished


def look_up(cells: Sequence[Cell], listener: Listener) -> LookedUp:
    """Which cells need not be trained, and which digests they all ask for.

    What is found is what the stages themselves would skip, short of the stores' contents: a stage that does run looks
    at these too.

    Raises:
        DataError: a data set is missing, or cannot be divided or labelled as asked.
    """
    known: dict[str, _Data] = {}
    fit = zoo.fit_once()  # for students whose network is left open: each asks for the same few
    found: dict[int, Run] = {}
    wanted: dict[int, str] = {}
    asking = {digest(cell.recipe.data): cell for cell in reversed(cells)}
    for cell in asking.values():
        with placed(arm_place(cell) if len(asking) > 1 else ""):
            _data(known, cell.recipe, listener)  # what is missing is said before hours are spent
    for cell in cells:
        data = partial(_data, known, cell.recipe, listener)
        run = None
        if cell.kind == "teacher":
            run = _teacher(cell, data, wanted)
        elif cell.needs in found:
            run = _student(cell, found[cell.needs], data, wanted, fit)
        elif cell.needs in wanted and _is_another(cell, wanted[cell.needs]):
            wanted[cell.number] = ""
        if run is not None:
            found[cell.number] = run
    return LookedUp(found, wanted)


def _data(known: dict[str, _Data], recipe: Recipe, listener: Listener) -> _Data:
    key = digest({"seed": recipe.seed, "data": recipe.data.model_dump(mode="json")})
    if key not in known:
        data = open_data(recipe, progress=files_read(listener))
        given = sha256_of_tensor(data.labels.given)
        known[key] = _Data(data.source.fingerprint(), given, data.shape, data.num_classes)
    return known[key]


def _opened(folder: Path) -> Run | None:
    """The run of a folder; a damaged one is for its own stage to complain of."""
    try:
        return open_run(folder) if (folder / RECORD).exists() else None
    except UserError:
        return None


def _is_another(cell: Cell, wanted: str) -> bool:
    """Whether a cell's teacher was trained by other images or given labels than are there now, or by another recipe."""
    trained = _trained(_opened(cell.teacher_folder))
    return trained is not None and trained.digest != wanted


def _trained(run: Run | None) -> StageRecord | None:
    return None if run is None else run.record.stages.get("teacher")


def _teacher(cell: Cell, data: Callable[[], _Data], wanted: dict[int, str]) -> Run | None:
    """The cell's run, where it is finished; its digest is put in `wanted`, where any teacher is trained there.

    Else the data of its seed are not opened: a comparison of many seeds that has not begun would open them all.
    """
    run = _opened(cell.teacher_folder)
    if run is None or (trained := _trained(run)) is None:
        return None
    wanted[cell.number] = inputs_digest(cell.recipe, data().fingerprint, data().given)
    if not run.done("teacher", wanted[cell.number]):
        return None
    exported = run.done("export", export_digest(cell.recipe, trained.files[WEIGHTS]))
    return run if not cell.exports or (exported and (run.folder / STORE / MANIFEST).is_file()) else None


def _student(cell: Cell, teacher: Run, data: Callable[[], _Data], wanted: dict[int, str], fit: Fit) -> Run | None:
    """The cell's run, where it is finished; its digest is put in `wanted`."""
    channels, side, _ = data().shape
    try:
        names = cell.recipe.student.more_teachers
        more = [open_run(find_run(name, Path(cell.recipe.checkpoints))) for name in names]
        rules = [label_rule(run.recipe) for run in more]
        sizes: dict[str, int] = {"channels": channels, "image_size": side, "classes": data().classes}
        settled = settle_student(cell.recipe, rules, **sizes, fit=fit).recipe
        weights = teacher.record.stages["teacher"].files[WEIGHTS]
        own = student_digest(settled, student_inputs(teacher, more, settled, weights))
    except UserError:  # its own stage says it better
        return None
    wanted[cell.number] = own
    run = _opened(teacher.folder / STUDENTS / student_name(settled, own))
    return run if run is not None and run.done("student", own) else None

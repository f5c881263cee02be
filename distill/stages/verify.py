"""Every digest of a run, a comparison, a store or learned labels, checked against the files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from distill.errors import RunError, StoreError, UserError
from distill.recipe.digest import inputs_digest
from distill.report.comparison_folder import damaged_comparison
from distill.report.curves import CURVES
from distill.report.lock import LOCK, at_work
from distill.report.published import COMPARISON, RESULTS
from distill.report.results import CELLS
from distill.report.runs import METRICS, RECIPE, RECORD, Run, damaged_files, open_run
from distill.stages.exported import outdated
from distill.stages.finished import STORE
from distill.stages.recompute import Recomputed, recompute
from distill.stages.student import STUDENTS
from distill.store.atomic import is_temporary, mendable
from distill.store.labels import verify_labels
from distill.store.manifest import LABELS, LABELS_FILE, LABELS_FOLDER, MANIFEST, read_manifest
from distill.store.sound import verify_store

_RUNS = (RECORD, RECIPE, COMPARISON)  # a folder with one of these is a run or a comparison
_CHANGING = "another process is at work there, or was until now: what is missing or differs may be what it writes"
Found = tuple[list[str], int]  # problems, number of files checked


def recompute_run(path: Path, count: int, seed: int) -> Recomputed:
    """Makes `count` rows of a run's store again from its teacher, and compares; see `recompute`.

    Raises:
        UserError: it is no teacher's run folder with an exported store, or rows differ.
    """
    if not (path / RECORD).exists():
        raise RunError(f"{path}: is no run folder, so there is no teacher to ask", cure="give a teacher's run folder.")
    run = open_run(path)
    if run.record.kind == "teacher" and "export" not in run.record.stages:
        raise RunError(f"{path}: its logits are not exported", cure=f"run `distill export --teacher {path}`.")
    return recompute(run, count, seed)


def verify_path(path: Path, tell: Callable[[str], object] = lambda line: None) -> int:
    """Checks a run folder (its students too), a folder of runs or comparisons, a store, or learned labels.

    What is covered: every file that a finished stage wrote, by its sha256; the store and the labels by their own
    manifests; that a comparison's own files can be read; whether an exported teacher's recipe.toml is the one that it
    was trained by, and whether a student's exported network was made from its weights, and the student itself with the
    teacher whose folder it is in. What is not: metrics.jsonl and figures, which are for people; reliability.json, which
    a report holds against the accuracy and ECE of run.json when it reads it; resume states, which carry a digest of
    their own; a comparison's tables, which `--report-only` makes again; `[student]` of a student's recipe.toml, whose
    digest needs the store as it was then; and the data.

    Args:
        path: what to check.
        tell: told of each folder beside runs that may not be looked into (lost+found, say) and is passed over.

    Returns:
        The number of files that were checked.

    Raises:
        StoreError: names everything that is wrong.
    """
    try:
        problems, files = _found(path, tell)
    except OSError as error:
        raise _unread(path, error) from error
    if problems:
        raise StoreError("\n".join(problems), cure=_cure(problems))
    return files


def _found(path: Path, tell: Callable[[str], object]) -> Found:
    if not path.is_dir():
        raise StoreError(f"{path}: no such folder", cure="give a run folder, a store or a folder of learned labels.")
    if (path / RECORD).exists():
        return _run(path)
    if (path / LOCK).exists() and _never_began(path):
        return [], 0
    if (path / COMPARISON).exists():
        return _comparison(path, tell)
    if inside := _runs_in(path, tell):
        return _all(inside)
    check = verify_labels if (path / LABELS).exists() else verify_store
    return check(path), sum(1 for file in path.rglob("[!.]*") if file.is_file())


def _runs_in(path: Path, tell: Callable[[str], object]) -> list[Path]:
    """The runs and comparisons in a folder; in a comparison's, what may not be looked into is one of its runs."""
    runs = []
    for folder in _members(path):
        try:
            is_run = any((folder / name).exists() for name in _RUNS)
        except OSError as error:
            is_run = (path / COMPARISON).exists()
            if not is_run:
                tell(f"{_unread(folder, error).message}; passed over")
        if is_run:
            runs.append(folder)
    return runs


def _unread(path: Path, error: OSError) -> StoreError:
    """Everything here is read only, so that is what was refused; `path` where the error does not say of what."""
    return mendable(Path(error.filename) if isinstance(error.filename, str) else path, "read", error)


def _cure(problems: Sequence[str]) -> str:
    """Restoring a file does not help who may not read it, and is not to be tried while another process writes it."""
    if any(line.endswith(_CHANGING) for line in problems):
        return "wait until that has ended, then verify it again."
    closed = sum(line.endswith(os.strerror(errno.EACCES)) for line in problems)
    reading = "let yourself read what may not be read (chmod -R u+rX FOLDER), or ask its owner to"
    if closed == len(problems):
        return f"{reading}."
    files = f"{reading}; restore the other files" if closed else "restore these files"
    return f"{files} from a copy, or make them again."


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _members(folder: Path) -> list[Path]:
    """What may be runs in a folder of runs, or in a comparison's."""
    return [each for each in _folders(folder) if each.name != CELLS]


def _comparison(folder: Path, tell: Callable[[str], object] = lambda line: None) -> Found:
    """Its own files can be read, and its runs are sound."""
    problems, files = _all(_runs_in(folder, tell))
    own = [folder / name for name in (COMPARISON, RESULTS, CURVES)] + list((folder / CELLS).glob("*.json"))
    return [*damaged_comparison(folder), *problems], files + sum(path.is_file() for path in own)


def _all(folders: list[Path]) -> Found:
    """Several run folders or comparisons; one that cannot be opened is a problem."""
    problems: list[str] = []
    files = 0
    for folder in (each for each in folders if not _never_began(each)):
        try:
            more, count = _comparison(folder) if (folder / COMPARISON).exists() else _run(folder)
        except (UserError, OSError) as error:
            more, count = [(_unread(folder, error) if isinstance(error, OSError) else error).message], 0
        problems, files = problems + more, files + count
    return problems, files


def _run(folder: Path) -> Found:
    """A run folder and its students.

    Raises:
        UserError: it is no run folder, or its record is damaged.
    """
    run = open_run(folder)
    problems = [*damaged_files(run), *outdated(run)]
    files = sum(len(stage.files) for stage in run.record.stages.values())
    # Each part is checked as what it is, too: a manifest may name files that the run's record does not.
    for check in (_store, _labels):
        more, count = _part(check, run)
        told = {_place(line) for line in problems}
        problems, files = problems + [line for line in more if _place(line) not in told], files + count
    if problems and _changing(run):
        problems.append(f"{folder}: {_CHANGING}")
    more, count = _part(_students, run)
    return [*problems, *(line for line in more if line not in problems)], files + count


def _place(problem: str) -> str:
    """The file or folder that a problem begins with: one is told of once, by the check that comes first."""
    return problem.partition(": ")[0]


def _part(check: Callable[[Run], Found], run: Run) -> Found:
    """One that cannot be read is a problem, and the other parts are checked all the same."""
    try:
        return check(run)
    except UserError as error:
        return [error.message], 0
    except OSError as error:
        return [_unread(run.folder, error).message], 0


def _changing(run: Run) -> bool:
    """Whether a run's files are, or were just now, made again: its record goes first, and comes last."""
    try:
        return at_work(run.folder) or open_run(run.folder).record != run.record
    except UserError:
        return False


def _store(run: Run) -> Found:
    # A store that an export could not record any more is one that students use all the same.
    if "export" not in run.record.stages and not (run.folder / STORE / MANIFEST).exists():
        return [], 0
    return verify_store(run.folder / STORE) or [*_another_recipe(run), *_other_labels(run)], 0


def _labels(run: Run) -> Found:
    folder = run.folder / LABELS_FOLDER
    # A teacher is recorded last: before that, a kill may have come between the tables and their manifest.
    return verify_labels(folder) if "teacher" in run.record.stages and folder.is_dir() else [], 0


def _students(run: Run) -> Found:
    folder = run.folder / STUDENTS
    students = _folders(folder) if folder.is_dir() else []
    problems, files = _all(students)
    return [*problems, *_of_another_teacher(run, students)], files


def _never_began(folder: Path) -> bool:
    """Whether a run is about to be made, or was killed, refused or out of room before it was: it left no result."""
    try:
        return all(path.name in (LOCK, METRICS, RECIPE) or is_temporary(path.name) for path in folder.iterdir())
    except OSError:  # which opening it tells of
        return False


def _of_another_teacher(run: Run, students: list[Path]) -> Iterator[str]:
    """Students that were moved here from another teacher's folder."""
    teacher = run.record.stages.get("teacher")
    if teacher is None:
        return
    for folder in students:
        with suppress(UserError):  # one that cannot be opened is told of already
            found = open_run(folder).record.teacher
            if found and found != teacher.digest:
                yield (
                    f"{folder / RECORD}: is another teacher's student, to be moved to that one's {STUDENTS}/: found "
                    f"teacher {found[:12]}..., expected {teacher.digest[:12]}..., the digest in {run.folder / RECORD}"
                )


def _other_labels(run: Run) -> list[str]:
    """Whether the store carries the very labels that the teacher learned."""
    teacher, carried = run.record.stages.get("teacher"), read_manifest(run.folder / STORE).labels
    if teacher is None:  # it is being trained again
        return []
    learned = teacher.files.get(LABELS_FILE)
    if learned == (carried.tables.sha256 if carried else None):
        return []
    return [f"{run.folder / STORE}: carries other learned labels than {run.folder / LABELS_FOLDER}"]


def _another_recipe(run: Run) -> list[str]:
    """Whether recipe.toml was changed after the teacher was trained; the store knows the digests of the data."""
    teacher = run.record.stages.get("teacher")
    if teacher is None:
        return []
    origin = read_manifest(run.folder / STORE).origin
    if inputs_digest(run.recipe, origin.data_fingerprint, origin.given_labels_sha256) == teacher.digest:
        return []
    reason = f"the teacher was trained by another recipe, or {STORE}/{MANIFEST} is another's"
    return [f"{run.folder / RECIPE}: {reason}"]

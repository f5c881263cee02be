"""Every digest of a run, a store or learned labels, checked against the files."""

from __future__ import annotations

from pathlib import Path

from distill.errors import StoreError
from distill.report.runs import RECORD, damaged_files, open_run
from distill.stages.export import STORE
from distill.stages.student import STUDENTS
from distill.store.labels import LABELS, verify_labels
from distill.store.logits import verify_store


def verify_path(path: Path) -> int:
    """Checks a run folder (its students too), a store, or a folder of learned labels.

    Returns:
        The number of files that were checked.

    Raises:
        StoreError: names everything that is wrong.
    """
    if not path.is_dir():
        raise StoreError(f"{path}: no such folder", cure="give a run folder, a store or a folder of learned labels.")
    problems, files = _problems(path)
    if problems:
        raise StoreError("\n".join(problems), cure="restore these files from a copy, or make them again.")
    return files


def _problems(path: Path) -> tuple[list[str], int]:
    if not (path / RECORD).exists():
        check = verify_labels if (path / LABELS).exists() else verify_store
        return check(path), sum(1 for file in path.iterdir() if file.is_file())
    run = open_run(path)
    problems = damaged_files(run)
    files = sum(len(stage.files) for stage in run.record.stages.values())
    # Each part is checked as what it is, too: a manifest may name files that the run's record does not.
    if "export" in run.record.stages:
        problems += [line for line in verify_store(path / STORE) if line not in problems]
    if (path / "labels").is_dir():
        problems += [line for line in verify_labels(path / "labels") if line not in problems]
    for student in sorted((path / STUDENTS).glob(f"*/{RECORD}")):
        more, count = _problems(student.parent)
        problems, files = problems + more, files + count
    return problems, files

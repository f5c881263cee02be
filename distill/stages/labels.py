"""`distill labels`: a look at the labels that a teacher learned. Tables, pictures, and the suspected label errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from distill.errors import DataError, RunError
from distill.labels.watch import ENOUGH, SATURATED, cure_for
from distill.recipe.schema import Recipe
from distill.report.figures import contact_sheet
from distill.report.label_figures import confidence_histogram, epochs_chart, heat_map
from distill.report.label_report import Confusion, LabelReport, Suspect, printable, suspects_csv
from distill.report.labels import (
    Indices,
    Judged,
    Pair,
    Table,
    class_means,
    confused_pairs,
    judge,
    left_classes,
    most_confused,
)
from distill.report.lock import drawing
from distill.report.runs import METRICS, Run
from distill.stages.finished import STORE
from distill.stages.label_data import LabelRows, label_rows, labels_of, no_learned_labels
from distill.stages.relations import PICTURE, relate
from distill.stages.student import STUDENTS
from distill.store.atomic import writable_folder, write_bytes
from distill.store.labels import LearnedLabels
from distill.store.manifest import LABELS_FOLDER
from distill.training.events import Event, Listener

FIGURES = "figures"
SHEET, LIST = "suspected_errors.png", "suspected_errors.csv"
TOP = 24  # rows of a table, and images of the contact sheet
_CLASSES = 20  # of a heat map
_TIMES = 5  # of a heat map, besides the end


def look_at_labels(
    run: Run,
    recipe: Recipe,
    listener: Listener,
    *,
    out: Path | None = None,
    top: int = TOP,
    against: Run | None = None,
) -> LabelReport:
    """Says what a finished teacher's labels have learned, and writes pictures and, of images, a CSV file.

    Where the data are gone, or are others by now, everything is made that needs no image, and the report says so.

    Args:
        run: the teacher's.
        recipe: the run's, perhaps with another `data.root`.
        listener: told how many files of a folder were read.
        out: where the files go; None: the run's figures.
        top: rows of a table, and images of the contact sheet, at most.
        against: a teacher of another seed, whose confusions the labels are compared with; None: they are not.

    Raises:
        UserError: the run is no finished teacher's, its labels are fixed or damaged, the files cannot be written.
    """
    labels = labels_of(run, recipe)
    if labels is None:
        raise no_learned_labels(run)
    folder = _place(run, out)
    with drawing(folder):
        return _look(run, recipe, labels, listener, folder, top, against)


def _look(
    run: Run,
    recipe: Recipe,
    labels: LearnedLabels,
    listener: Listener,
    folder: Path,
    top: int,
    against: Run | None,
) -> LabelReport:
    """See `look_at_labels`; the files go to `folder`."""
    # First, as it may be refused: then nothing has been written.
    relation = None if against is None else relate(run, recipe, against, listener, folder)
    seen = label_rows(run, recipe, labels, listener)
    judged = _judged(run, seen)
    pairs = confused_pairs(_means(seen, labels.averaged), seen.rows, max(top, _CLASSES**2))
    files: dict[str, Path] = {}
    notes = ["labels of classes name no single image, so no image is suspected"]
    if labels.kind == "instance":
        files, notes = _write_suspects(folder, recipe, seen, seen.order[:top], planted=judged is not None)
        notes += [*_left(run, seen), *_meta_counted(seen)]
    files["heat_map"] = _draw_heat_map(folder / "label_heat_map.png", seen, pairs)
    chart = folder / "label_epochs.png"
    if epochs_chart(chart, run.epochs("teacher"), len(seen.names)):
        files["epochs"] = chart
    else:
        notes.append(f"no chart of the epochs: {run.folder / METRICS} says nothing of labels{_earlier(chart)}")
    if relation is not None and relation.picture is None:
        notes.append(f"no picture of class relations: {relation.missing}{_earlier(folder / PICTURE)}")
    return LabelReport(
        run=str(run.folder),
        kind=labels.kind,
        rows=len(seen.rows.given),
        classes=len(seen.names),
        differing=float(seen.rows.suspected.mean()),
        entropy=float(seen.rows.entropy.mean(dtype=np.float64)),
        saturated=float((seen.rows.confidence > SATURATED).mean()),
        touched=float(labels.touched.double().mean()),
        suspected=len(seen.order),
        confusions=tuple(_confusion(seen, pair) for pair in pairs[:top]),
        suspects=tuple(_suspects(seen, seen.order[:top], planted=judged is not None)),
        judged=judged,
        files={name: str(path) for name, path in files.items()},
        notes=tuple(notes),
        relation=relation,
    )


def draw_suspects(teacher: Run) -> Path | None:
    """A contact sheet of the suspected label errors, in the run's figures.

    Returns:
        The PNG; None when the teacher has no labels of its own for each image.
    """
    labels = labels_of(teacher, teacher.recipe)
    if labels is None or labels.kind != "instance":
        return None
    seen = label_rows(teacher, teacher.recipe, labels, _silent)
    folder = writable_folder(teacher.folder / FIGURES)
    with drawing(folder):
        _draw_sheet(folder / SHEET, seen, seen.order[:TOP], planted=_judged(teacher, seen) is not None)
    return folder / SHEET


def _silent(event: Event) -> None:
    pass


def _place(run: Run, out: Path | None) -> Path:
    """Where the files go, and may go: a file more in a store or among the students is one that `verify` complains of.

    Raises:
        RunError: it is a part of the run that is verified.
        StoreError: it cannot be made or written to.
    """
    if out is None:
        return writable_folder(run.folder / FIGURES)
    for name in (LABELS_FOLDER, STORE, STUDENTS):
        if out.resolve().is_relative_to((run.folder / name).resolve()):
            raise RunError(
                f"--out {out}: {name}/ of a run holds nothing but its own files", cure="choose another folder."
            )
    return writable_folder(out)


def _judged(run: Run, seen: LabelRows) -> Judged | None:
    """The labels against the true ones where some were made wrong on purpose. True labels report, they never teach."""
    if seen.labels.kind == "instance":
        return None if seen.true is None else judge(seen.rows.given, seen.rows.learned, seen.true)
    metrics = run.metrics("teacher")
    before, after = metrics.get("given_right", 1.0), metrics.get("labels_right")
    if before == 1 or after is None:
        return None
    return Judged(wrong=1 - before, precision=None, recall=None, f1=None, right_before=before, right_after=after)


def _means(seen: LabelRows, table: Tensor, classes: Indices | None = None) -> Table:
    """Mean label of each given class, [K, K] of these classes or [C, C] of all. A class table is that already."""
    if seen.labels.kind == "class":
        return table.numpy() if classes is None else table.numpy()[np.ix_(classes, classes)]
    every = np.arange(table.shape[1]) if classes is None else classes
    return class_means(table.numpy(), seen.rows.given, every)


def _confusion(seen: LabelRows, pair: Pair) -> Confusion:
    images = pair.images if seen.labels.kind == "instance" else None
    return Confusion(seen.names[pair.given], seen.names[pair.learned], pair.mass, images)


def _left(run: Run, seen: LabelRows) -> Iterator[str]:
    """Classes whose suspects are hardly label errors: most of their images are among them."""
    for left in left_classes(seen.rows, len(seen.names), ENOUGH):
        given, learned = (printable(seen.names[k]) for k in (left.given, left.learned))
        yield (
            f"{left.gone} of {left.images} images given as {given} have left it, most for {learned}: either most "
            f"labels of {given} are wrong, or the teacher took both classes for one; look at the pictures before any "
            f"of these labels is changed; else train again with {cure_for(run.recipe.teacher.labels)}"
        )


def _meta_counted(seen: LabelRows) -> Iterator[str]:
    """Why the shares are others than those of the training: its own are of the training part."""
    if seen.data is None:
        return
    meta = int(np.isin(seen.labels.indices.numpy(), seen.data.splits.meta.numpy()).sum())
    if meta:
        yield (
            f"{meta:,} of these {len(seen.rows.given):,} labels are of meta images that were trained on too: they "
            "count here, and not in the shares that the teacher's training told"
        )


def _suspects(seen: LabelRows, chosen: Indices, *, planted: bool) -> Iterator[Suspect]:
    """Rows by name: int64 [K]."""
    true = seen.true if planted else None
    for row in chosen.tolist():
        yield Suspect(
            index=seen.index(row),
            path=seen.file(row),
            given=seen.names[seen.rows.given[row]],
            learned=seen.names[seen.rows.learned[row]],
            confidence=float(seen.rows.confidence[row]),
            given_probability=float(seen.rows.kept[row]),
            true=None if true is None else seen.names[true[row]],
        )


def _write_suspects(
    folder: Path, recipe: Recipe, seen: LabelRows, shown: Indices, *, planted: bool
) -> tuple[dict[str, Path], list[str]]:
    """Contact sheet, CSV file of all suspected images, and how sure the labels are.

    Returns:
        What was written, by name; what was not, and why.
    """
    files, notes = {}, []
    try:
        _draw_sheet(folder / SHEET, seen, shown, planted=planted)
        files["contact_sheet"] = folder / SHEET
    except DataError as error:
        place = f"--set {_moved(recipe, error.message)}=PATH names another place{_earlier(folder / SHEET)}"
        notes.append(f"no contact sheet: {error.message}; {place}")
    if seen.data is None and (folder / LIST).exists():
        notes.append(f"{folder / LIST} is left as it is: names of files and classes come from the data")
    else:
        write_bytes(folder / LIST, suspects_csv(_suspects(seen, seen.order, planted=planted), true=planted))
        files["suspected_errors"] = folder / LIST
    files["confidence"] = folder / "label_confidence.png"
    confidence_histogram(files["confidence"], seen.rows.confidence, seen.rows.suspected, len(seen.names))
    return files, notes


def _moved(recipe: Recipe, message: str) -> str:
    """The field of what could not be opened: a file of labels that the error speaks of, else the images' folder."""
    for field, file in (("data.corrections", recipe.data.corrections), ("data.noise.file", recipe.data.noise.file)):
        if file and (message.startswith(field) or file in message):
            return field
    return "data.root"


def _earlier(path: Path) -> str:
    """Of a file that was not made this time, for the end of a note."""
    return f"; {path} is an earlier one" if path.exists() else ""


def _draw_sheet(path: Path, seen: LabelRows, shown: Indices, *, planted: bool) -> None:
    images, suspects = seen.images(shown), list(_suspects(seen, shown, planted=planted))
    contact_sheet(path, images, suspects, planted=planted)


def _draw_heat_map(path: Path, seen: LabelRows, pairs: list[Pair]) -> Path:
    """Of the kept tables and the averaged one; of the classes that are confused most, where there are many."""
    chosen = most_confused(pairs, len(seen.names), _CLASSES)
    epochs = sorted(seen.labels.trajectory)
    times = np.linspace(0, len(epochs) - 1, min(_TIMES, len(epochs))).round().astype(int).tolist()
    tables = {f"after epoch {epochs[k]}": seen.labels.trajectory[epochs[k]] for k in times}
    tables["kept: mean over the last epochs"] = seen.labels.averaged
    panels = {title: np.asarray(_means(seen, table, chosen), np.float64) for title, table in tables.items()}
    note = "Where the probability of the given class goes; in the diagonal what it keeps, in %"
    if len(chosen) < len(seen.names):
        note += f"\nthe {len(chosen)} most confused of {len(seen.names):,} classes"
    heat_map(path, panels, [seen.names[k] for k in chosen.tolist()], note)
    return path

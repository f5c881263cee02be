"""A teacher's learned labels, and what the data say of their rows: names, files, true labels, pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distill.data.folder import FolderSource
from distill.data.loader import ImageData, open_data
from distill.errors import DataError, RunError, StoreError
from distill.recipe.schema import Recipe
from distill.report.figures import thumbnail
from distill.report.labels import Indices, Rows, look_at_rows
from distill.report.runs import Run
from distill.stages.common import teacher_inputs
from distill.stages.finished import STORE, finished_teacher
from distill.store.labels import LearnedLabels, read_labels, read_labels_manifest
from distill.store.manifest import LABELS_FILE, LABELS_FOLDER, read_manifest
from distill.store.origin import Origin
from distill.store.tensors import sha256_of_tensor
from distill.training.events import Listener, files_read

_DECODED = 8  # images that are held in full size


def labels_of(run: Run, recipe: Recipe) -> LearnedLabels | None:
    """The labels that a finished teacher learned, whatever its rule; None where they are fixed. Tables are memory maps.

    Raises:
        RunError: the run is a student's, or the teacher is not finished.
        StoreError: the labels are missing, damaged, or not those that the teacher wrote.
    """
    files = finished_teacher(run, recipe).files
    folder = run.folder / LABELS_FOLDER
    written = files.get(LABELS_FILE)
    if written is None and not folder.is_dir():
        return None
    labels = read_labels(folder)
    if written not in (None, read_labels_manifest(folder).labels.sha256):
        raise StoreError(
            f"{folder}: holds other labels than the teacher wrote", cure="restore it; or delete it and train again."
        )
    return labels


@dataclass(frozen=True, eq=False)
class LabelRows:
    """Learned labels beside what is known of their images or classes.

    Attributes:
        labels: the tables.
        rows: what each row of the averaged one says.
        order: rows of the suspected images, the most confident first, int64 [K]; none of a class table.
        names: of the C classes; their numbers where nobody knows the names.
        data: what the teacher was trained on; None where that is not to be had.
        missing: why not.
    """

    labels: LearnedLabels
    rows: Rows
    order: Indices
    names: tuple[str, ...]
    data: ImageData | None
    missing: str

    @property
    def true(self) -> Indices | None:
        """True label of each image of the table, int64 [N]; None of a class table, or where nobody knows."""
        if self.data is None or self.labels.kind == "class":
            return None
        return self.data.labels.true[self.labels.indices].numpy()

    def index(self, row: int) -> int:
        """Of a row's image in the source."""
        return int(self.labels.indices[row])

    def file(self, row: int) -> str:
        """Path of a row's image below `data.root`; empty where the source has no files."""
        source = None if self.data is None else self.data.source
        return source.files[self.index(row)] if isinstance(source, FolderSource) else ""

    def images(self, rows: Indices) -> list[NDArray[np.uint8]]:
        """Pictures of some rows' images, uint8 [h, w, ch] or [h, w] each, large ones scaled down.

        Raises:
            DataError: an image cannot be read, or there are no data.
        """
        if self.data is None:
            raise DataError(self.missing)
        chunks = torch.split(self.labels.indices[torch.from_numpy(rows)], _DECODED) if len(rows) else ()
        batches = self.data.source.stream(chunks)
        return [thumbnail(image) for batch in batches for image in batch.permute(0, 2, 3, 1).numpy()]


def label_rows(run: Run, recipe: Recipe, labels: LearnedLabels, listener: Listener) -> LabelRows:
    """Reads the table row by row, and opens the data that it belongs to, if they are there and still the same.

    Args:
        run: a finished teacher's.
        recipe: the run's, perhaps with another `data.root`.
        labels: the run's.
        listener: told how many files of a folder were read.
    """
    rows = look_at_rows(labels.averaged.numpy(), labels.given.numpy())
    order = rows.suspects() if labels.kind == "instance" else np.empty(0, np.int64)
    origin, data, missing = _origin(run), None, ""
    try:
        found = open_data(recipe, progress=files_read(listener))
        if _belong(run, recipe, labels, found, origin):
            data = found
        else:
            missing = (
                f"{recipe.data.root or recipe.data.source}: these may be other images or given labels than the teacher "
                "was trained on: they were changed, or another version of this program trained it and it has no store"
            )
    except DataError as error:
        missing = error.message
    return LabelRows(labels, rows, order, _names(labels.labels.shape[1], data, origin), data, missing)


def no_learned_labels(run: Run) -> RunError:
    """The error for a teacher whose labels are fixed."""
    rule = run.recipe.teacher.labels.rule
    made = "it was trained elsewhere" if run.recipe.teacher.imported.source else f"it was trained on {rule} labels"
    return RunError(
        f"{run.folder}: its teacher has no learned labels ({LABELS_FOLDER}/): {made}",
        cure="give a run whose teacher learned its labels; `distill list labels` names the rules that do.",
    )


def _origin(run: Run) -> Origin | None:
    """What the run's store belongs to, if there is one: it outlives moved data."""
    try:
        return read_manifest(run.folder / STORE).origin
    except StoreError:
        return None


def _belong(run: Run, recipe: Recipe, labels: LearnedLabels, data: ImageData, origin: Origin | None) -> bool:
    """Whether these are the data that the teacher was trained on.

    A program that knows other fields than the one that trained it has another digest of the same recipe. Then the store
    says which images of a folder there were; published data sets are what they were.
    """
    given = data.labels.given
    if labels.labels.shape[1] != data.num_classes or int(labels.indices.max()) >= len(given):
        return False
    if labels.kind == "instance" and not torch.equal(given[labels.indices], labels.given):
        return False
    if not data.source.decodes or teacher_inputs(recipe, data) == run.record.stages["teacher"].digest:
        return True
    then = None if origin is None else (origin.data_fingerprint, origin.given_labels_sha256)
    return then == (data.source.fingerprint(), sha256_of_tensor(given))


def _names(classes: int, data: ImageData | None, origin: Origin | None) -> tuple[str, ...]:
    names = data.classes if data is not None else () if origin is None else origin.class_names
    return names if len(names) == classes else tuple(map(str, range(classes)))

"""Learned labels on disk: the table, its average, its trajectory, and which rows were touched.

One folder: `labels.safetensors`, and `manifest.json`, written last. Whole tables are memory maps; checks walk over them
without a second copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, JsonValue, model_validator
from torch import Tensor

from distill.errors import StoreError
from distill.store.atomic import check_regular, writable_folder
from distill.store.json_files import read_json, write_json
from distill.store.manifest import LABELS, MANIFEST, Digest, validated
from distill.store.origin import Closed
from distill.store.shards import problem_with, problem_with_indices
from distill.store.tensors import read_tensors, write_tensors

# Not Literal[1], which takes true for 1.
_SCHEMA_VERSION = 1
_SchemaVersion = Annotated[int, Field(ge=_SCHEMA_VERSION, le=_SCHEMA_VERSION)]
_TRAJECTORY = "trajectory."
# float32 rows sum to 1 within 1e-5 even at 20,000 classes; float16 ones within 5e-4 and 3e-8 a class.
_SUM_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-3}


@dataclass(frozen=True, eq=False)
class LearnedLabels:
    """Labels that were learned with a teacher. Rows are training images, or classes; N = C for a class table.

    Attributes:
        kind: a row for each class, or for each training image ("instance").
        labels: probabilities after the last step, float32 [N, C].
        averaged: their mean over the last epochs, float32 [N, C].
        indices: source index of each row, int64 [N]; for a class table 0 to C - 1.
        given: the label that the row started from, int64 [N].
        touched: whether the row was ever updated, bool [N].
        trajectory: the table after some epochs, float16 or float32 [N, C].
    """

    kind: Literal["class", "instance"]
    labels: Tensor
    averaged: Tensor
    indices: Tensor
    given: Tensor
    touched: Tensor
    trajectory: dict[int, Tensor] = field(default_factory=dict)

    @property
    def argmax(self) -> Tensor:
        """The class that the averaged label holds likeliest, int64 [N]."""
        return self.averaged.argmax(dim=-1)

    @property
    def confidence(self) -> Tensor:
        """The averaged label's largest probability, float32 [N]."""
        return self.averaged.amax(dim=-1)

    @property
    def suspected(self) -> Tensor:
        """Whether the averaged label disagrees with the given one, bool [N]."""
        return self.argmax != self.given


class LabelsManifest(Closed):
    """What a folder of learned labels says about itself."""

    schema_version: _SchemaVersion = _SCHEMA_VERSION
    kind: Literal["class", "instance"]
    rows: int = Field(ge=1, le=2**40, description="Rows of the table, N.")
    classes: int = Field(ge=1, le=2**24, description="Classes, C.")
    trajectory: Annotated[tuple[int, ...], Field(strict=False)] = Field(description="Epochs of which tables are kept.")
    labels: Digest = Field(description="The file that holds the tables.")
    origin: JsonValue = Field(description="What the labels belong to.")

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.labels.file != LABELS:
            raise ValueError(f"the tables' file is {self.labels.file!r}, expected {LABELS!r}")
        if list(self.trajectory) != sorted(set(self.trajectory)):
            raise ValueError(f"the trajectory's epochs do not ascend: {self.trajectory}")
        return self


def write_labels(folder: Path, labels: LearnedLabels, origin_facts: JsonValue) -> None:
    """Writes learned labels, the manifest last.

    Args:
        folder: where; made if need be.
        labels: the tables.
        origin_facts: what they belong to, as JSON.

    Raises:
        StoreError: the labels are no probabilities (a label step that diverged), or the files cannot be written.
    """
    folder = Path(folder)
    if problems := _problems(labels):
        raise StoreError(
            f"{folder}: these labels cannot be kept: {'; '.join(problems)}",
            cure="The label step diverged: use a smaller one, of [teacher.labels] or of the rule's own table.",
        )
    writable_folder(folder)
    tensors = {
        "labels": labels.labels,
        "averaged": labels.averaged,
        "indices": labels.indices,
        "given": labels.given,
        "touched": labels.touched,
    }
    for epoch, table in labels.trajectory.items():
        tensors[f"{_TRAJECTORY}{epoch}"] = table
    sha256 = write_tensors(folder / LABELS, tensors)
    manifest = LabelsManifest(
        kind=labels.kind,
        rows=len(labels.indices),
        classes=labels.labels.shape[1],
        trajectory=tuple(sorted(labels.trajectory)),
        labels=Digest(file=LABELS, sha256=sha256, bytes=check_regular(folder / LABELS)),
        origin=origin_facts,
    )
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def read_labels_manifest(folder: Path) -> LabelsManifest:
    """The manifest of a folder of learned labels; its `origin` says what they belong to.

    Raises:
        StoreError: there is none, or it is not to be believed.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise StoreError(f"{folder}: holds no learned labels: it has no {MANIFEST}", cure=_again(path))
    try:
        return validated(path, LabelsManifest, read_json(path))
    except StoreError as error:
        if isinstance(error.__cause__, OSError):  # the file may be sound
            raise
        raise StoreError(error.message, cure=_again(path)) from error


def _again(path: Path) -> str:
    """The cure for a file of a teacher's labels: a teacher whose files are all there is not trained again."""
    return f"{f'Delete {path}, and train' if path.exists() else 'Train'} the teacher again: distill teacher RECIPE"


def read_labels(folder: Path) -> LearnedLabels:
    """Reads learned labels; the tables are private memory maps.

    Raises:
        StoreError: they are missing, damaged, or no probabilities.
    """
    folder = Path(folder)
    manifest = read_labels_manifest(folder)
    again = _again(folder / LABELS)
    if problem := problem_with(folder, manifest.labels, content=True):
        raise StoreError(problem, cure=again)
    tensors = read_tensors(folder / LABELS)
    names = {"labels", "averaged", "indices", "given", "touched"}
    names |= {f"{_TRAJECTORY}{epoch}" for epoch in manifest.trajectory}
    if tensors.keys() != names:
        found, expected = str(sorted(tensors))[:300], str(sorted(names))[:300]
        raise StoreError(f"{folder / LABELS}: holds {found}, expected {expected}", cure=again)
    trajectory = {epoch: tensors.pop(f"{_TRAJECTORY}{epoch}") for epoch in manifest.trajectory}
    labels = LearnedLabels(kind=manifest.kind, trajectory=trajectory, **tensors)
    problems = _problems(labels)
    if not problems and labels.labels.shape != (manifest.rows, manifest.classes):
        problems = [f"labels are {tuple(labels.labels.shape)}, the manifest says {manifest.rows, manifest.classes}"]
    if problems:
        raise StoreError(f"{folder / LABELS}: {'; '.join(problems)}", cure=again)
    return labels


def verify_labels(folder: Path) -> list[str]:
    """Every problem of a folder of learned labels, a sentence each; empty when it is sound."""
    folder = Path(folder)
    try:
        read_labels(folder)
    except StoreError as error:
        return [error.message]
    known = {MANIFEST, LABELS}
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return [f"{folder / name}: the manifest does not name this file" for name in names if name not in known]


def _problems(labels: LearnedLabels) -> list[str]:
    """Why these are no labels, a sentence each."""
    shape = tuple(labels.labels.shape)
    if len(shape) != 2 or 0 in shape:
        return [f"labels are {shape}, expected [N, C]"]
    rows, classes = shape
    problems = []
    vectors = {"indices": torch.int64, "given": torch.int64, "touched": torch.bool}
    for name, dtype in vectors.items():
        vector = getattr(labels, name)
        if vector.dtype != dtype or tuple(vector.shape) != (rows,):
            problems.append(f"{name} are {vector.dtype} {tuple(vector.shape)}, expected {dtype} ({rows},)")
    if problems:
        return problems
    if problem := problem_with_indices(labels.indices):
        problems.append(problem)
    if int(labels.given.min()) < 0 or int(labels.given.max()) >= classes:
        problems.append(f"a given label is outside 0 to {classes - 1}")
    if labels.kind == "class" and (rows != classes or not torch.equal(labels.indices.cpu(), torch.arange(classes))):
        problems.append(f"a class table has a row for each of the {classes} classes, in order; this one has {rows}")
    for name, table in (("labels", labels.labels), ("averaged", labels.averaged)):
        problems += _problems_of_table(name, table, shape, (torch.float32,))
    for epoch, table in labels.trajectory.items():
        problems += _problems_of_table(f"the table after epoch {epoch}", table, shape, (torch.float32, torch.float16))
    return problems


def _problems_of_table(name: str, table: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> list[str]:
    if table.dtype not in dtypes or tuple(table.shape) != shape:
        return [f"{name}: {table.dtype} {tuple(table.shape)}, expected {dtypes[0]} {shape}"]
    low, high = (float(value) for value in table.aminmax())
    # Written so that NaN, which is neither above nor below anything, counts as a problem.
    if not low >= 0 or not high <= 1 + 1e-3:
        return [f"{name}: reaches from {low:g} to {high:g}, expected probabilities"]
    sums = table.sum(dim=-1, dtype=torch.float32)
    worst = int((sums - 1).abs().argmax())
    if abs(float(sums[worst]) - 1) > _SUM_TOLERANCE[table.dtype]:
        return [f"{name}: row {worst} sums to {float(sums[worst]):g}, expected 1"]
    return []

"""A finished teacher: its weights and labels, what its store belongs to, and what it gives for views of images."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.data.decode import decoders
from distill.data.loader import ImageData, ordered_batches
from distill.data.views import view_count
from distill.errors import RunError
from distill.models import zoo
from distill.models.features import logits_and_features
from distill.models.maps import MapHook, Stage, as_row, find_stages
from distill.recipe.digest import digest, teacher_digest
from distill.recipe.importing import LOCAL_DIR, TIMM
from distill.recipe.schema import Recipe
from distill.report.lock import waiting
from distill.report.runs import RECIPE, WEIGHTS, Run, StageRecord
from distill.stages.common import as_teacher_sees, model_spec, teacher_inputs
from distill.store.atomic import sha256_of
from distill.store.checkpoint import load_weights
from distill.store.manifest import LABELS, LABELS_FOLDER, MANIFEST
from distill.store.origin import Origin
from distill.store.tensors import sha256_of_tensor

STORE = "logits"


@torch.no_grad()
def teacher_outputs(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    rows: Tensor,
    view: int,
    device: torch.device,
    *,
    features: bool,
    stages: Sequence[Stage] = (),
) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
    """The teacher's logits of one view of some images, and its features and attention maps when they are wanted.

    Args:
        model: in eval mode, on the device.
        data: the images.
        recipe: the views, and the batch size.
        rows: source indices, int64 [n].
        view: the view's number.
        device: where the model is.
        features: whether features are wanted.
        stages: of the model, whose attention maps are wanted.

    Yields:
        Logits [b, C], features [b, D] or None, maps [b, P] or None, float32 on the CPU, in the order of `rows`.
    """
    batches = ordered_batches(
        as_teacher_sees(data, recipe),
        rows,
        batch_size=recipe.export.batch_size,
        device=device,
        view=view,
        views=recipe.views,
        seed=recipe.seed,
        population=stored_rows(data),
    )
    with MapHook(model, stages) as hook:
        for batch in batches:
            logits, found = logits_and_features(model, batch.images) if features else (model(batch.images), None)
            maps = as_row(hook.maps).cpu() if stages else None
            yield logits.float().cpu(), None if found is None else found.float().cpu(), maps


def map_stages(
    model: nn.Module, data: ImageData, recipe: Recipe, rows: Tensor, device: torch.device
) -> tuple[Stage, ...]:
    """The stages of a teacher in eval mode whose attention maps are stored.

    Raises:
        ModelError: it has none.
    """
    return find_stages(model, few_images(data, recipe, rows, device))


def few_images(data: ImageData, recipe: Recipe, rows: Tensor, device: torch.device) -> Tensor:
    """Two images as the teacher sees them [2, ch, H, W]."""
    return next(ordered_batches(as_teacher_sees(data, recipe), rows[:2], batch_size=2, device=device)).images


def learned_labels(run: Run) -> Path | None:
    """The folder of the labels that a finished teacher learned; None when it learned none.

    Raises:
        RunError: they are not what the teacher wrote.
    """
    teacher = run.record.stages.get("teacher")
    files = {} if teacher is None else teacher.files
    names = [f"{LABELS_FOLDER}/{name}" for name in (MANIFEST, LABELS)]
    if not any(name in files for name in names):
        return None
    _refuse_other_files(run, run.recipe, names)
    return run.folder / LABELS_FOLDER


def load_teacher(recipe: Recipe, data: ImageData, weights: Path, device: torch.device) -> nn.Module:
    """The teacher in eval mode, with these weights."""
    model = zoo.create(model_spec(recipe.teacher, data, "teacher"))
    load_weights(weights, model)
    return model.to(device).eval()


def teacher_weights(run: Run, recipe: Recipe, data: ImageData) -> tuple[Path, str]:
    """The finished teacher's weights and their sha256.

    Raises:
        RunError: the run is a student's, the teacher is not finished or was trained by another recipe or on other data,
            or its file was changed.
    """
    record = finished_teacher(run, recipe)
    if record.digest != teacher_inputs(recipe, data):
        raise RunError(
            f"{run.folder}: its teacher was trained by another recipe, on other images or with other given labels",
            cure="put back what was changed, or train a teacher under another name.",
        )
    path = run.folder / WEIGHTS
    _refuse_other_files(run, recipe, [path.name])
    return path, record.files[path.name]


def _refuse_other_files(run: Run, recipe: Recipe, names: Sequence[str]) -> None:
    """That files are what the run's teacher wrote, by their sha256.

    Raises:
        RunError: one is not, or is missing.
    """
    again = shlex.join(_made_by(recipe, run.folder.resolve()))
    for path, expected in ((run.folder / name, run.record.stages["teacher"].files.get(name)) for name in names):
        if not path.is_file():
            raise RunError(f"{path}: missing; the teacher wrote it", cure=f"restore the file; or run `{again}`.")
        if sha256_of(path) != expected:
            raise RunError(
                f"{path}: sha256 differs from what the teacher wrote",
                cure=f"restore the file; or delete it and run `{again}`.",
            )


def finished_teacher(run: Run, recipe: Recipe) -> StageRecord:
    """The record of the run's teacher.

    Raises:
        RunError: the run is a student's, or the teacher is not finished.
    """
    if run.record.kind != "teacher":
        raise RunError(f"{run.folder}: this is a student", cure=f"its teacher is {run.folder.resolve().parents[1]}.")
    record = run.record.stages.get("teacher")
    if record is None:
        again = shlex.join(_made_by(recipe, run.folder.resolve()))
        raise RunError(f"{run.folder}: its teacher is not finished", cure=f"{waiting(run.folder)}run `{again}`.")
    return record


def _made_by(recipe: Recipe, folder: Path) -> list[str]:
    """The command that makes the teacher in this folder, whatever it was called when its recipe was written."""
    place = ["--set", f"checkpoints={folder.parent}"]
    if folder.name != recipe.name:
        place += ["--set", f"name={folder.name}"]
    if not recipe.teacher.imported.source:
        return ["distill", "teacher", str(folder / RECIPE), *place]
    return [*imported_by(recipe), "--recipe", str(folder / RECIPE), *place]


def imported_by(recipe: Recipe) -> list[str]:
    """The command that imports the recipe's teacher, but for `--recipe`."""
    source = recipe.teacher.imported.source
    words = ["distill", "export", "--teacher", source]
    if not source.startswith((TIMM, LOCAL_DIR)):  # a file alone does not say which network it is
        words += ["--model", recipe.teacher.model]
        for name, value in recipe.teacher.model_args.items():
            words += ["--set", f"teacher.model_args.{name}={json.dumps(value)}"]
    return words


def stored_rows(data: ImageData) -> Tensor:
    """Source indices whose logits are stored: all that a student may train on, int64 [R], ascending."""
    return data.splits.teachable


def origin_of(data: ImageData, recipe: Recipe, weights_sha256: str) -> Origin:
    """What a store of this teacher on these data belongs to; the student asks for the same before it reads a row."""
    seen = as_teacher_sees(data, recipe)
    return Origin(
        teacher_digest=digest({"recipe": teacher_digest(recipe), "weights": weights_sha256}),
        recipe_digest=teacher_digest(recipe),
        data_source=data.source.name,
        data_fingerprint=data.source.fingerprint(),
        given_labels_sha256=sha256_of_tensor(data.labels.given),
        label_rule="imported" if recipe.teacher.imported.source else recipe.teacher.labels.rule,
        class_names=tuple(data.source.classes),
        views=recipe.views.model_dump(mode="json"),
        view_count=view_count(recipe.views),
        view_seed=recipe.seed,
        mean=seen.mean,
        std=seen.std,
        decoders=decoders() if data.source.decodes else None,
    )

"""Stage two: write the teacher's logits to a store. After this the teacher network never runs again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from distill.data.loader import ImageData, open_data
from distill.data.views import view_count
from distill.errors import RecipeError, StoreError
from distill.models.features import feature_width
from distill.models.maps import Stage
from distill.recipe.digest import export_digest
from distill.recipe.schema import Recipe
from distill.report.lock import locked
from distill.report.runs import Run
from distill.stages.answers import MEASURED, answers_of
from distill.stages.finished import (
    STORE,
    few_images,
    finished_teacher,
    learned_labels,
    load_teacher,
    map_stages,
    origin_of,
    stored_rows,
    teacher_outputs,
    teacher_weights,
)
from distill.store.atomic import sha256_of
from distill.store.logits import LogitStore
from distill.store.manifest import LABELS_FOLDER, MANIFEST, Manifest, Piece, read_manifest
from distill.store.origin import Origin
from distill.store.writer import Batch, LogitWriter
from distill.training.device import describe_device, prepare_device
from distill.training.events import ExportProgress, Listener, MetricsFile, StageDone, StageSkipped, fan_out, files_read
from distill.training.interrupt import Interrupted, StopRequest, listen_for_stop


def export_teacher(run: Run, recipe: Recipe, listener: Listener) -> Path:
    """Exports a finished teacher's logits of every view of every training image (the meta images too).

    Penultimate features and attention maps go beside them when the recipe asks, the teacher's learned labels always.

    Args:
        run: a teacher's run folder.
        recipe: the run's own recipe, perhaps with other `views.count` or `[export]`.
        listener: told of the progress.

    Returns:
        The store's folder.

    Raises:
        UserError: the teacher is not finished, its weights are not those of its record, the disk is full, ...
        Interrupted: asked to stop; finished shards are kept.
    """
    device = prepare_device(recipe)
    data = open_data(recipe, progress=files_read(listener))
    folder = run.folder / STORE
    run.reread()  # asked without the lock, beside which the cure would be to wait for whoever holds it
    finished_teacher(run, recipe)
    with locked(run.folder):
        run.reread()
        weights, weights_sha256 = teacher_weights(run, recipe, data)
        wanted, origin = export_digest(recipe, weights_sha256), origin_of(data, recipe, weights_sha256)
        ours = recipe.model_copy(update={"name": run.record.name})
        if run.done("export", wanted) and _is_whole(folder, origin):
            run.keep_recipe(ours)
            listener(StageSkipped("export", str(run.folder), "already exported with the same inputs"))
            return folder
        check_k(recipe, data.source.name, data.num_classes)
        began = time.monotonic()
        model, labels = load_teacher(recipe, data, weights, device), learned_labels(run)
        _refuse_another_store(folder, origin)
        features, stages = _beside(model, data, recipe, device)
        # From here on the store that is there may go. No kill may leave one of another recipe than the run's.
        run.forget("export")
        kept = partial(run.keep_recipe, ours)
        writer = _writer(folder, origin, data, recipe, device, features, stages, labels, kept)
        _write_missing(writer, model, data, recipe, device, stages, listener)
        files = _digests(folder, writer.finish())
        size = sum((run.folder / name).stat().st_size for name in files)
        metrics = {"megabytes": size / 1e6, "rows": float(writer.plan.rows), **_measured(folder, data, recipe)}
        metrics["seconds"] = time.monotonic() - began
        run.finish("export", wanted, metrics, files, describe_device(device))
        done = StageDone("export", str(run.folder), metrics["seconds"], run.metrics("export"))
        fan_out(MetricsFile(run.folder / "metrics.jsonl"), listener)(done)
    return folder


def _writer(
    folder: Path,
    origin: Origin,
    data: ImageData,
    recipe: Recipe,
    device: torch.device,
    features: int | None,
    stages: Sequence[Stage],
    labels: Path | None,
    cleared: Callable[[], None],
) -> LogitWriter:
    """Of the store that the recipe asks for, with what is whole there already."""
    return LogitWriter(
        folder,
        origin=origin,
        indices=stored_rows(data),
        classes=data.num_classes,
        views=view_count(recipe.views),
        format=recipe.export.format,
        shard_rows=recipe.export.shard_rows,
        k=recipe.export.k,
        features=features,
        maps=[stage.size for stage in stages] if stages else None,
        labels=labels,
        device=device.type,
        overwrite=True,
        cleared=cleared,
    )


def _measured(folder: Path, data: ImageData, recipe: Recipe) -> dict[str, float]:
    """What the answers are like, for a comparison to tell why its students differ.

    Of mixed images it is the entropy alone: they have two labels, so no answer is the right one. Where nobody knows
    which labels are right, it is not said how many answers are.
    """
    found = answers_of(LogitStore.open(folder, reconstruct=True), data.labels.given, data.labels.true)
    if recipe.views.mixes:
        return {MEASURED: found[MEASURED]}
    return found if recipe.data.truth_known else {name: v for name, v in found.items() if name != "answers_right"}


def check_k(recipe: Recipe, source: str, classes: int) -> None:
    """That top-k keeps no more logits than there are classes.

    Args:
        recipe: says how many are kept.
        source: the name of the data, for the error.
        classes: C.

    Raises:
        RecipeError: it does.
    """
    if (recipe.export.k or 1) > classes:
        raise RecipeError(
            f"[export] k: found {recipe.export.k}, but {source} has {classes} classes", cure="Set a smaller one."
        )


def _digests(folder: Path, manifest: Manifest) -> dict[str, str]:
    """sha256 of every file of the store, by path in the run folder."""
    files = {file.file: file.sha256 for file in manifest.files}
    if manifest.labels is not None:
        carried = (manifest.labels.manifest, manifest.labels.tables)
        files |= {f"{LABELS_FOLDER}/{file.file}": file.sha256 for file in carried}
    files[MANIFEST] = sha256_of(folder / MANIFEST)
    return {f"{STORE}/{name}": sha256 for name, sha256 in files.items()}


def _is_whole(folder: Path, origin: Origin) -> bool:
    """Whether the store can be opened; it is read from end to end only where it has changed since it last was."""
    try:
        LogitStore.open(folder, expect=origin)
    except StoreError:
        return False
    return True


def _refuse_another_store(folder: Path, origin: Origin) -> None:
    """An unfinished export, or an older store of this same teacher, may make room; nothing else.

    Raises:
        StoreError: another teacher's store, or one whose manifest cannot be believed.
    """
    if (folder / MANIFEST).exists() and read_manifest(folder).origin.teacher_digest != origin.teacher_digest:
        raise StoreError(f"{folder}: holds another teacher's logits", cure=f"Move {folder} away, then export again.")


def _beside(
    model: nn.Module, data: ImageData, recipe: Recipe, device: torch.device
) -> tuple[int | None, tuple[Stage, ...]]:
    """What is stored beside the logits: the features' width D, None for none; the stages whose maps are."""
    width, rows = None, stored_rows(data)
    if recipe.export.features:
        width = feature_width(model, few_images(data, recipe, rows, device))
    return width, map_stages(model, data, recipe, rows, device) if recipe.export.maps else ()


def _write_missing(
    writer: LogitWriter,
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    device: torch.device,
    stages: Sequence[Stage],
    listener: Listener,
) -> None:
    rows, missing, features = stored_rows(data), writer.missing(), writer.plan.features is not None
    total = view_count(recipe.views) * rows.numel()
    done = total - sum(piece.stop - piece.start for piece in missing)

    def told(piece: Piece, stop: StopRequest) -> Iterator[Batch]:
        nonlocal done
        chosen = rows[piece.start : piece.stop]
        outputs = teacher_outputs(model, data, recipe, chosen, piece.view, device, features=features, stages=stages)
        for logits, *beside in outputs:
            yield logits, *beside
            done += len(logits)
            listener(ExportProgress(done, total))
            if stop:
                raise Interrupted("export", f"in view {piece.view} at row {piece.start}")

    with listen_for_stop() as stop:
        for piece in missing:
            writer.write_batches(piece, told(piece, stop))
        if stop:
            raise Interrupted("export", "before its end")

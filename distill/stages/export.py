"""Stage two: write the teacher's logits to a store. After this the teacher network never runs again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.data.loader import ImageData, open_data, ordered_batches
from distill.data.views import view_count
from distill.errors import RunError, StoreError
from distill.models import zoo
from distill.recipe.digest import digest, export_digest, teacher_digest
from distill.recipe.schema import Recipe
from distill.report.runs import RECIPE, Run, locked
from distill.stages.common import as_teacher_sees, model_spec, teacher_inputs
from distill.store.atomic import sha256_of
from distill.store.checkpoint import load_weights
from distill.store.logits import LogitWriter
from distill.store.manifest import MANIFEST, Origin, Piece, read_manifest
from distill.store.tensors import sha256_of_tensor
from distill.training.device import describe_device, prepare_device
from distill.training.events import ExportProgress, Listener, MetricsFile, StageDone, StageSkipped, fan_out, files_read
from distill.training.interrupt import Interrupted, listen_for_stop

STORE = "logits"


def export_teacher(run: Run, recipe: Recipe, listener: Listener) -> Path:
    """Exports a finished teacher's logits of every view of every training image (the meta images too).

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
    weights, weights_sha256 = teacher_weights(run, recipe, data)
    wanted = export_digest(recipe, weights_sha256)
    folder = run.folder / STORE
    if run.done("export", wanted):
        listener(StageSkipped("export", str(run.folder), "already exported with the same inputs"))
        return folder
    with locked(run.folder):
        began = time.monotonic()
        model = load_teacher(recipe, data, weights, device)
        rows = stored_rows(data)
        origin = origin_of(data, recipe, weights_sha256)
        overwrite = _is_own_store(folder, origin)
        run.forget("export")
        run.keep_recipe(recipe.model_copy(update={"name": run.record.name}))
        writer = LogitWriter(
            folder,
            origin=origin,
            indices=rows,
            classes=len(data.source.classes),
            views=view_count(recipe.views),
            format=recipe.export.format,
            shard_rows=recipe.export.shard_rows,
            overwrite=overwrite,
        )
        _write_missing(writer, model, data, recipe, rows, device, listener)
        manifest = writer.finish()
        files = {f"{STORE}/{shard.file}": shard.sha256 for shard in manifest.shards}
        files[f"{STORE}/{manifest.indices.file}"] = manifest.indices.sha256
        files[f"{STORE}/{MANIFEST}"] = sha256_of(folder / MANIFEST)
        size = sum((run.folder / name).stat().st_size for name in files)
        metrics = {"seconds": time.monotonic() - began, "megabytes": size / 1e6, "rows": float(rows.numel())}
        run.finish("export", wanted, metrics, files, describe_device(device))
        done = StageDone("export", str(run.folder), metrics["seconds"], run.metrics("export"))
        fan_out(MetricsFile(run.folder / "metrics.jsonl"), listener)(done)
    return folder


def _is_own_store(folder: Path, origin: Origin) -> bool:
    """Whether what is there may make room: an unfinished export, or an older store of this same teacher."""
    if not (folder / MANIFEST).exists():
        return True
    try:
        return read_manifest(folder).origin.teacher_digest == origin.teacher_digest
    except StoreError:
        return False


def _write_missing(
    writer: LogitWriter,
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    rows: Tensor,
    device: torch.device,
    listener: Listener,
) -> None:
    missing = writer.missing()
    total = view_count(recipe.views) * rows.numel()
    done = total - sum(piece.stop - piece.start for piece in missing)
    with listen_for_stop() as stop:
        for piece in missing:
            logits = []
            for chunk in _logits(model, data, recipe, rows[piece.start : piece.stop], piece, device):
                logits.append(chunk)
                done += chunk.shape[0]
                listener(ExportProgress(done, total))
                if stop:
                    raise Interrupted("export", f"in view {piece.view} at row {piece.start}")
            writer.write(piece, torch.cat(logits))
        if stop:
            raise Interrupted("export", "before its end")


@torch.no_grad()
def _logits(
    model: nn.Module, data: ImageData, recipe: Recipe, rows: Tensor, piece: Piece, device: torch.device
) -> Iterator[Tensor]:
    batches = ordered_batches(
        as_teacher_sees(data, recipe),
        rows,
        batch_size=recipe.export.batch_size,
        device=device,
        view=piece.view,
        views=recipe.views,
        seed=recipe.seed,
    )
    for batch in batches:
        yield model(batch.images).float().cpu()


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
    if run.record.kind != "teacher":
        raise RunError(f"{run.folder}: this is a student", cure=f"its teacher is {run.folder.resolve().parents[1]}.")
    record = run.record.stages.get("teacher")
    if record is None:
        folder, place = run.folder.resolve(), f"--set checkpoints={run.folder.resolve().parent}"
        source = recipe.teacher.imported.source
        again = f"distill teacher {folder / RECIPE} {place}"
        if source:
            again = f"distill export --teacher {source} --recipe {folder / RECIPE} {place}"
        raise RunError(f"{run.folder}: its teacher is not finished", cure=f"run `{again}`.")
    if record.digest != teacher_inputs(recipe, data):
        raise RunError(
            f"{run.folder}: its teacher was trained by another recipe, on other images or with other given labels",
            cure="put back what was changed, or train a teacher under another name.",
        )
    path = run.folder / "model.safetensors"
    expected = record.files.get(path.name)
    if expected is None or sha256_of(path) != expected:
        raise RunError(f"{path}: sha256 differs from what the teacher wrote", cure="restore the file, or train again.")
    return path, expected


def stored_rows(data: ImageData) -> Tensor:
    """Source indices whose logits are stored: all that a student may train on, int64 [R], ascending."""
    return torch.cat([data.splits.train, data.splits.meta]).sort().values


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
    )

"""Stage two: write the teacher's logits to a store. After this the teacher network never runs again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.data.loader import ImageData, open_data, ordered_batches
from distill.data.views import view_count
from distill.errors import RunError
from distill.models import zoo
from distill.recipe.digest import digest, export_digest, teacher_digest
from distill.recipe.schema import Recipe
from distill.report.runs import Run, locked
from distill.stages.common import model_spec
from distill.store.atomic import sha256_of
from distill.store.checkpoint import load_weights
from distill.store.logits import LogitWriter
from distill.store.manifest import MANIFEST, Origin, Piece
from distill.store.tensors import sha256_of_tensor
from distill.training.device import prepare_device
from distill.training.events import ExportProgress, Listener, MetricsFile, StageDone, StageSkipped, fan_out
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
    weights, weights_sha256 = teacher_weights(run, recipe)
    wanted = export_digest(recipe, weights_sha256)
    folder = run.folder / STORE
    if run.done("export", wanted):
        listener(StageSkipped("export", str(run.folder), "already exported with the same inputs"))
        return folder
    device = prepare_device(recipe)
    with locked(run.folder):
        overwrite = "export" in run.record.stages  # an older store of this same teacher: other views or format
        run.forget("export")
        began = time.monotonic()
        data = open_data(recipe)
        model = load_teacher(recipe, data, weights, device)
        rows = stored_rows(data)
        writer = LogitWriter(
            folder,
            origin=origin_of(data, recipe, weights_sha256),
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
        run.finish("export", wanted, metrics, files)
        done = StageDone("export", str(run.folder), metrics["seconds"], run.record.stages["export"].metrics)
        fan_out(MetricsFile(run.folder / "metrics.jsonl"), listener)(done)
    return folder


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


@torch.no_grad()
def _logits(
    model: nn.Module, data: ImageData, recipe: Recipe, rows: Tensor, piece: Piece, device: torch.device
) -> Iterator[Tensor]:
    batches = ordered_batches(
        data,
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


def teacher_weights(run: Run, recipe: Recipe) -> tuple[Path, str]:
    """The finished teacher's weights and their sha256.

    Raises:
        RunError: the teacher is not finished, was trained by another recipe, or its file was changed.
    """
    record = run.record.stages.get("teacher")
    if record is None:
        raise RunError(
            f"{run.folder}: its teacher is not finished", cure=f"run `distill teacher {run.folder}/recipe.toml`."
        )
    if record.digest != teacher_digest(recipe):
        raise RunError(
            f"{run.folder}: its teacher was trained by another recipe", cure="train it again under another name."
        )
    name = "model.safetensors"
    path = run.folder / name
    if sha256_of(path) != record.files[name]:
        raise RunError(f"{path}: sha256 differs from what the teacher wrote", cure="restore the file, or train again.")
    return path, record.files[name]


def stored_rows(data: ImageData) -> Tensor:
    """Source indices whose logits are stored: all that a student may train on, int64 [R], ascending."""
    return torch.cat([data.splits.train, data.splits.meta]).sort().values


def origin_of(data: ImageData, recipe: Recipe, weights_sha256: str) -> Origin:
    """What a store of this teacher on these data belongs to; the student asks for the same before it reads a row."""
    return Origin(
        teacher_digest=digest({"recipe": teacher_digest(recipe), "weights": weights_sha256}),
        recipe_digest=teacher_digest(recipe),
        data_source=data.source.name,
        data_fingerprint=data.source.fingerprint(),
        given_labels_sha256=sha256_of_tensor(data.labels.given),
        label_rule=recipe.teacher.labels.rule,
        class_names=tuple(data.source.classes),
        views=recipe.views.model_dump(mode="json"),
        view_count=view_count(recipe.views),
        view_seed=recipe.seed,
        mean=data.mean,
        std=data.std,
    )

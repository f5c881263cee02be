"""Stage two: write the teacher's logits to a store. After this the teacher network never runs again."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.data.decode import decoders
from distill.data.loader import ImageData, open_data, ordered_batches
from distill.data.views import view_count
from distill.errors import RecipeError, RunError, StoreError
from distill.models import zoo
from distill.models.features import feature_width, logits_and_features
from distill.models.maps import MapHook, Stage, as_row, find_stages
from distill.recipe.digest import digest, export_digest, teacher_digest
from distill.recipe.importing import LOCAL_DIR, TIMM
from distill.recipe.schema import Recipe
from distill.report.runs import RECIPE, Run, locked
from distill.stages.common import as_teacher_sees, model_spec, teacher_inputs
from distill.store.atomic import sha256_of
from distill.store.checkpoint import load_weights
from distill.store.logits import LogitStore
from distill.store.manifest import LABELS, LABELS_FOLDER, MANIFEST, Manifest, Piece, read_manifest
from distill.store.origin import Origin
from distill.store.tensors import sha256_of_tensor
from distill.store.writer import Batch, LogitWriter
from distill.training.device import describe_device, prepare_device
from distill.training.events import ExportProgress, Listener, MetricsFile, StageDone, StageSkipped, fan_out, files_read
from distill.training.interrupt import Interrupted, StopRequest, listen_for_stop

STORE = "logits"


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
    weights, weights_sha256 = teacher_weights(run, recipe, data)
    wanted = export_digest(recipe, weights_sha256)
    folder = run.folder / STORE
    origin = origin_of(data, recipe, weights_sha256)
    if run.done("export", wanted) and _is_whole(folder, origin):
        listener(StageSkipped("export", str(run.folder), "already exported with the same inputs"))
        return folder
    check_k(recipe, data)
    with locked(run.folder):
        began = time.monotonic()
        model = load_teacher(recipe, data, weights, device)
        rows, labels = stored_rows(data), learned_labels(run)
        _refuse_another_store(folder, origin)
        features, stages = _beside(model, data, recipe, rows, device)
        # From here on the store that is there may go.
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
            k=recipe.export.k,
            features=features,
            maps=[stage.size for stage in stages] if stages else None,
            labels=labels,
            device=device.type,
            overwrite=True,
        )
        _write_missing(writer, model, data, recipe, rows, device, stages, listener)
        files = _digests(folder, writer.finish())
        size = sum((run.folder / name).stat().st_size for name in files)
        metrics = {"seconds": time.monotonic() - began, "megabytes": size / 1e6, "rows": float(rows.numel())}
        run.finish("export", wanted, metrics, files, describe_device(device))
        done = StageDone("export", str(run.folder), metrics["seconds"], run.metrics("export"))
        fan_out(MetricsFile(run.folder / "metrics.jsonl"), listener)(done)
    return folder


def check_k(recipe: Recipe, data: ImageData) -> None:
    """That top-k keeps no more logits than there are classes.

    Raises:
        RecipeError: it does.
    """
    if (recipe.export.k or 1) > data.num_classes:
        raise RecipeError(
            f"[export] k: found {recipe.export.k}, but {data.source.name} has {data.num_classes} classes",
            cure="Set a smaller one.",
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
    model: nn.Module, data: ImageData, recipe: Recipe, rows: Tensor, device: torch.device
) -> tuple[int | None, tuple[Stage, ...]]:
    """What is stored beside the logits: the features' width D, None for none; the stages whose maps are."""
    width = None
    if recipe.export.features:
        width = feature_width(model, _few_images(data, recipe, rows, device))
    return width, map_stages(model, data, recipe, rows, device) if recipe.export.maps else ()


def map_stages(
    model: nn.Module, data: ImageData, recipe: Recipe, rows: Tensor, device: torch.device
) -> tuple[Stage, ...]:
    """The stages of a teacher in eval mode whose attention maps are stored.

    Raises:
        ModelError: it has none.
    """
    return find_stages(model, _few_images(data, recipe, rows, device))


def _few_images(data: ImageData, recipe: Recipe, rows: Tensor, device: torch.device) -> Tensor:
    """Two images as the teacher sees them [2, ch, H, W]."""
    return next(ordered_batches(as_teacher_sees(data, recipe), rows[:2], batch_size=2, device=device)).images


def _write_missing(
    writer: LogitWriter,
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    rows: Tensor,
    device: torch.device,
    stages: Sequence[Stage],
    listener: Listener,
) -> None:
    missing, features = writer.missing(), writer.plan.features is not None
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
    for name in names:
        if sha256_of(run.folder / name) != files.get(name):
            raise RunError(
                f"{run.folder / name}: sha256 differs from what the teacher wrote",
                cure="restore the file, or train again.",
            )
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
    if run.record.kind != "teacher":
        raise RunError(f"{run.folder}: this is a student", cure=f"its teacher is {run.folder.resolve().parents[1]}.")
    record = run.record.stages.get("teacher")
    if record is None:
        again = shlex.join(_made_by(recipe, run.folder.resolve()))
        raise RunError(f"{run.folder}: its teacher is not finished", cure=f"run `{again}`.")
    if record.digest != teacher_inputs(recipe, data):
        raise RunError(
            f"{run.folder}: its teacher was trained by another recipe, on other images or with other given labels",
            cure="put back what was changed, or train a teacher under another name.",
        )
    path = run.folder / "model.safetensors"
    expected = record.files.get(path.name)
    if expected is None or sha256_of(path) != expected:
        raise RunError(
            f"{path}: sha256 differs from what the teacher wrote",
            cure=f"restore the file; or delete it and run `{shlex.join(_made_by(recipe, run.folder.resolve()))}`.",
        )
    return path, expected


def _made_by(recipe: Recipe, folder: Path) -> list[str]:
    """The command that makes the teacher in this folder."""
    place = ["--set", f"checkpoints={folder.parent}"]
    source = recipe.teacher.imported.source
    if not source:
        return ["distill", "teacher", str(folder / RECIPE), *place]
    words = ["distill", "export", "--teacher", source, "--recipe", str(folder / RECIPE), *place]
    if not source.startswith((TIMM, LOCAL_DIR)):  # a file alone does not say which network it is
        words += ["--model", recipe.teacher.model]
        for name, value in recipe.teacher.model_args.items():
            words += ["--set", f"teacher.model_args.{name}={json.dumps(value)}"]
    return words


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
        decoders=decoders() if data.source.decodes else None,
    )

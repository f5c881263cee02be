"""A teacher that was trained elsewhere becomes a run folder, from which export, student and verify go on as ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from distill.data.loader import ImageData, open_data
from distill.errors import ModelError, StoreError
from distill.models import zoo
from distill.models.foreign import fit_size
from distill.models.small import Enlarged
from distill.recipe.checks import check_recipe
from distill.recipe.schema import ImportedRecipe, Recipe, TeacherRecipe
from distill.report.lock import locked
from distill.report.runs import RECORD, WEIGHTS, Run, make_run, open_run
from distill.stages.checkpoints import Checkpoint, find_checkpoint
from distill.stages.common import (
    after_scaling,
    as_teacher_sees,
    evaluator,
    model_spec,
    teacher_inputs,
    tell_left_out,
    write_left_out,
)
from distill.stages.held import refuse_another_teacher
from distill.store.atomic import sha256_of
from distill.store.checkpoint import load_weights, save_weights
from distill.training.device import describe_device, prepare_device
from distill.training.events import Listener, MetricsFile, Notice, StageDone, StageSkipped, fan_out, files_read


def import_teacher(text: str, recipe: Recipe, listener: Listener, *, model: str | None = None) -> tuple[Run, Recipe]:
    """Makes a run folder with a finished teacher stage of weights from elsewhere, or finds it done.

    Args:
        text: timm:NAME, local-dir:FOLDER or a safetensors file.
        recipe: from `import_recipe`: name, data, views, export, student.
        listener: told what the teacher is going to see, and how it does.
        model: timm's name of the network, for a file that does not come with a config.json.

    Returns:
        The run folder, and the recipe with [teacher] filled in, which is what to export by.

    Raises:
        UserError: no such weights, a pickled file, weights that do not fit, other classes than the data's, ...
    """
    checkpoint = find_checkpoint(text, model, recipe.teacher.model_args)
    device = prepare_device(recipe)
    data = open_data(recipe, progress=files_read(listener))
    recipe = resolved(recipe, checkpoint, data)
    check_recipe(recipe, recipe.name)
    digest = teacher_inputs(recipe, data)
    folder = Path(recipe.checkpoints) / recipe.name
    with locked(folder, named=True):
        refuse_another_teacher(folder, recipe, digest)
        if (folder / RECORD).exists() and (run := open_run(folder)).done("teacher", digest):
            listener(StageSkipped("teacher", str(folder), "already imported from the same weights"))
            return run, recipe
        began = time.monotonic()
        network = load_network(checkpoint, recipe, data).to(device).eval()
        listener = fan_out(MetricsFile(folder / "metrics.jsonl"), listener)
        tell_left_out(data, listener)
        for notice in _notices(checkpoint, recipe, data):
            listener(Notice(notice))
        metrics = _judged(network, recipe, data, device, listener)
        run = make_run(folder, recipe, kind="teacher", begun=digest)
        run.forget("teacher")
        files = {WEIGHTS: save_weights(folder / WEIGHTS, network.state_dict())}
        files |= write_left_out(data, folder)
        metrics["seconds"] = time.monotonic() - began
        run.finish("teacher", digest, metrics, files, describe_device(device), _provenance(checkpoint, recipe))
        listener(StageDone("teacher", str(folder), metrics["seconds"], run.metrics("teacher")))
    return run, recipe


def resolved(recipe: Recipe, checkpoint: Checkpoint, data: ImageData) -> Recipe:
    """The recipe with a [teacher] that says all about the imported one.

    Raises:
        ModelError: other classes than the data's, in another order, other channels, or a size that it does not take.
    """
    network, told = checkpoint.network, recipe.teacher.imported
    channels, height, width = data.shape
    _check_classes(checkpoint, data)
    if network.channels != channels != 1:
        raise ModelError(
            f"{checkpoint.source}: takes images of {network.channels} channels, those of {data.source.name} "
            f"have {channels}",
            cure="Choose a teacher for such images; only grey ones can be shown to a network for colours",
        )
    if height != width:
        raise ModelError(f"{data.source.name}: images are {height} x {width}, expected square ones")
    sees = fit_size(network, classes=data.num_classes, image_size=height, asked=told.image_size)
    imported = ImportedRecipe(
        source=checkpoint.source,
        weights_sha256=sha256_of(checkpoint.weights),
        channels=network.channels,
        image_size=sees,
        mean=_spread(told.mean, network.channels) or network.mean,
        std=_spread(told.std, network.channels) or network.std,
    )
    teacher = TeacherRecipe(model=network.architecture, model_args=dict(network.arguments), imported=imported)
    return recipe.model_copy(update={"teacher": teacher})


def _spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values


def _check_classes(checkpoint: Checkpoint, data: ImageData) -> None:
    network, ours = checkpoint.network, tuple(data.source.classes)
    theirs = network.class_names
    if network.classes is not None and network.classes != len(ours):
        raise ModelError(
            f"{checkpoint.source}: knows {network.classes} classes, {data.source.name} has {len(ours)}",
            cure="Name the data that it was trained for: --set data.source=..., or --recipe",
        )
    if theirs is None or theirs == ours:
        return
    if len(theirs) != len(ours):
        raise ModelError(
            f"{checkpoint.source}: names {len(theirs)} classes, {data.source.name} has {len(ours)}",
            cure="Mend label_names in its config.json",
        )
    at = next(number for number in range(len(ours)) if ours[number] != theirs[number])
    what = "the same classes in another order" if sorted(ours) == sorted(theirs) else "other classes"
    raise ModelError(
        f"{checkpoint.source}: names {what} than {data.source.name}: class {at} is {theirs[at]!r} there, "
        f"{ours[at]!r} in the data",
        cure="Bring the data's classes into its order. If only the names differ, take label_names out of its "
        "config.json: the order is then taken on trust",
    )


def load_network(checkpoint: Checkpoint, recipe: Recipe, data: ImageData) -> nn.Module:
    """The network with its weights, every one and no other, on the CPU.

    Raises:
        UserError: tensors that are missing, unknown, of another shape or type, or not finite.
    """
    spec = model_spec(recipe.teacher, data, "teacher")
    model = zoo.create(spec, pretrained=checkpoint.kind == "published")
    if checkpoint.kind != "published":
        # The images' enlargement is ours, so the checkpoint knows nothing of it; unless it is an enlarged model's.
        ours = isinstance(model, Enlarged) and recipe.teacher.model != spec.architecture
        inner: nn.Module = model.body if ours else model  # type: ignore[assignment]
        load_weights(checkpoint.weights, inner)
    bad = [name for name, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise StoreError(
            f"{checkpoint.weights}: {bad[0]!r}{more} holds values that are NaN or infinite",
            cure="The training that made it diverged, or the file is damaged: take another checkpoint.",
        )
    return model


def _notices(checkpoint: Checkpoint, recipe: Recipe, data: ImageData) -> Iterator[str]:
    imported, names = recipe.teacher.imported, checkpoint.network.class_names
    channels, side, _ = data.shape
    sees = f"{imported.channels} x {imported.image_size} x {imported.image_size}"
    resized = "" if imported.image_size == side else f", resized from {side} x {side}"
    grey = "" if imported.channels == channels else ", the grey channel in each"
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (imported.mean, imported.std))
    yield f"teacher: {checkpoint.source} sees images as {sees}{resized}{grey}; mean {mean}; std {std}"
    if checkpoint.kind == "file" and (imported.mean, imported.std) == (checkpoint.network.mean, checkpoint.network.std):
        yield (
            f"teacher: mean and std are timm's usual ones for {recipe.teacher.model}, as a file alone says nothing of "
            "them; others: --set teacher.imported.mean=... --set teacher.imported.std=..."
        )
    if names is None:
        first = ", ".join(map(repr, data.source.classes[:3]))
        yield (
            "teacher: the order of its classes is taken on trust, as it does not name them: its outputs are taken for "
            f"{first}, ..."
        )


def _judged(
    network: nn.Module, recipe: Recipe, data: ImageData, device: torch.device, listener: Listener
) -> dict[str, float]:
    """Its scores on validation and test images; says so when it is no better than always naming one class."""
    seen, batch_size = as_teacher_sees(data, recipe), recipe.export.batch_size
    judge = evaluator(seen, device, batch_size)
    validation, test = judge(network, "validation"), judge(network, "test")
    metrics = validation.named("validation") if validation.count else {}
    true = data.labels.true[data.splits.test]
    commonest = float(true.bincount().max()) / max(1, len(true)) if len(true) else 0.0
    if test.count and test.accuracy <= commonest:
        listener(
            Notice(
                f"teacher: right on {test.accuracy:.1%} of the test images, and naming one class always would be on "
                f"{commonest:.1%}: check the order of its classes, its mean and std, and the size that it sees"
            )
        )
    return metrics | (test.named("test") if test.count else {}) | after_scaling(network, seen, device, batch_size)


def _provenance(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, str]:
    named = checkpoint.network.class_names is not None
    return {
        "source": checkpoint.source,
        "weights_sha256": recipe.teacher.imported.weights_sha256,
        "classes": "named by the checkpoint, as in the data" if named else "order taken on trust",
    }

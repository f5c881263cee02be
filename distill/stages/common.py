"""What the stages share: fitting a model to the data, judging it, naming its store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from distill.data.loader import ImageData, ordered_batches
from distill.errors import ModelError
from distill.models import zoo
from distill.models.foreign import foreign_spec
from distill.models.zoo import Fit, ModelSpec
from distill.recipe.digest import inputs_digest
from distill.recipe.schema import Recipe, StageRecipe, StudentRecipe, TeacherRecipe
from distill.seeding import derive, seeded
from distill.store.atomic import sha256_of
from distill.store.checkpoint import load_weights, save_weights
from distill.store.json_files import write_json
from distill.store.tensors import sha256_of_tensor
from distill.training.evaluate import Scores, evaluate
from distill.training.events import Listener, Notice
from distill.training.scaling import scaled_scores
from distill.training.schedule import build_optimizer
from distill.training.task import Part

UNREADABLE = "unreadable.json"  # in a teacher's run folder: all images that were left out, and why
_NAMED = 20  # of them in the warning


def model_spec(stage: StageRecipe, data: ImageData, table: str) -> ModelSpec:
    """The recipe's model, fitted to the images and the classes.

    Raises:
        ModelError: see `zoo.fit`; the message starts with the recipe's table.
    """
    channels, height, width = data.shape
    if height != width:
        raise ModelError(f"{data.source.name}: images are {height} x {width}, expected square ones")
    return fit_model(stage, table, channels=channels, image_size=height, classes=data.num_classes)


def fit_model(
    stage: StageRecipe, table: str, *, channels: int, image_size: int, classes: int, fit: Fit | None = None
) -> ModelSpec:
    """`zoo.fit` with errors that name the recipe's table; an imported teacher is built as it was trained.

    Args:
        stage: what the recipe's table holds.
        table: its name.
        channels: of the images.
        image_size: H = W, in pixels.
        classes: C.
        fit: for those who ask the same more than once, `zoo.fit_once()`; None: `zoo.fit`.

    Raises:
        ModelError: see `zoo.fit`.
    """
    if isinstance(stage, TeacherRecipe) and stage.imported.source:
        return foreign_spec(
            stage.model,
            stage.model_args,
            channels=stage.imported.channels,
            classes=classes,
            image_size=image_size,
            sees=stage.imported.image_size,
        )
    try:
        return (fit or zoo.fit)(
            stage.model, classes=classes, channels=channels, image_size=image_size, arguments=stage.model_args
        )
    except ModelError as error:
        raise ModelError(f"[{table}] model: {error.message}", cure=error.cure) from error


def as_teacher_sees(data: ImageData, recipe: Recipe) -> ImageData:
    """The data with the normalisation that the teacher was trained with: its own when it is imported.

    One channel normalised by three means is three channels: a grey image reaches a network for colours as PIL's
    `convert("RGB")` would make it.
    """
    imported = recipe.teacher.imported
    return replace(data, mean=imported.mean, std=imported.std) if imported.source else data


def teacher_inputs(recipe: Recipe, data: ImageData) -> str:
    """Digest of everything that decides a teacher: its part of the recipe, the images in order, the given labels."""
    return inputs_digest(recipe, data.source.fingerprint(), sha256_of_tensor(data.labels.given))


def tell_left_out(data: ImageData, listener: Listener) -> None:
    """A warning that names the images that are in no part, if there are any."""
    if found := list(data.source.unreadable.values()):
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        plural = "" if len(found) == 1 else "s"
        named = "; ".join(found[:_NAMED])
        listener(Notice(f"warning: {len(found)} unreadable image{plural} left out: {named}{more}", warns=True))


def write_left_out(data: ImageData, run: Path) -> dict[str, str]:
    """Lists the images that are in no part, if there are any, with index and reason; the file's name and sha256."""
    if not (found := data.source.unreadable):
        return {}
    return {UNREADABLE: write_json(run / UNREADABLE, {str(index): why for index, why in found.items()})}


def memory_format(stage: StageRecipe) -> torch.memory_format:
    """How the stage's weights lie in memory."""
    return torch.channels_last if stage.channels_last else torch.preserve_format


def create_model(spec: ModelSpec, stage: StageRecipe, table: str) -> nn.Module:
    """`zoo.create` with errors that name the recipe's table."""
    try:
        return zoo.create(spec, pretrained=stage.pretrained)
    except ModelError as error:
        raise ModelError(f"[{table}] pretrained: {error.message}", cure=error.cure) from error


def build_network(
    stage: TeacherRecipe | StudentRecipe, table: str, data: ImageData, seed: int, device: torch.device
) -> tuple[ModelSpec, nn.Module, torch.optim.Optimizer]:
    """The stage's model in train mode on its device, with weights that `seed` decides, and its optimiser."""
    spec = model_spec(stage, data, table)
    with seeded(torch.device("cpu"), derive(seed, f"{table}-weights")):
        model = create_model(spec, stage, table)
    model = model.to(device).to(memory_format=memory_format(stage)).train()
    return spec, model, build_optimizer(model, stage.optimizer, f"{table}.optimizer")


def write_selected(model: nn.Module, stage: StageRecipe, run: Path) -> dict[str, str]:
    """Settles which weights the stage goes on with, loads them into the model and writes the others beside.

    model.safetensors is for the caller to write. best.safetensors is there already where there are validation images,
    and only there: training removes another's when it begins (`BestWeights.forget`).
    last.safetensors is written when the best epoch is the one to go on with.

    Returns:
        sha256 of the other weights, by file name.
    """
    files = {}
    best = run / "best.safetensors"
    if stage.select == "best":
        files["last.safetensors"] = save_weights(run / "last.safetensors", model.state_dict())
        load_weights(best, model)
    if best.exists():
        files[best.name] = sha256_of(best)
    return files


def evaluator(data: ImageData, device: torch.device, batch_size: int) -> Callable[[nn.Module, Part], Scores]:
    """Scores on validation (by its given labels, which choose) or test (by the true ones, which report)."""

    def judge(model: nn.Module, part: Part) -> Scores:
        rows = data.splits.validation if part == "validation" else data.splits.test
        targets = data.labels.given if part == "validation" else data.labels.true
        return evaluate(model, ordered_batches(data, rows, batch_size=batch_size, device=device), targets)

    return judge


def after_scaling(model: nn.Module, data: ImageData, device: torch.device, batch_size: int) -> dict[str, float]:
    """The test part's scores after temperature scaling, see `scaled_scores`; none without any validation image."""
    if not data.splits.validation.numel():
        return {}
    validation, test = (
        ordered_batches(data, rows, batch_size=batch_size, device=device)
        for rows in (data.splits.validation, data.splits.test)
    )
    return scaled_scores(model, validation, data.labels.given, test, data.labels.true)

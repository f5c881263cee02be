"""A teacher that was trained elsewhere becomes a run folder, from which export, student and verify go on as ever.

Weights are read from safetensors files only: a pickled file can run code when it is opened.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.data.loader import ImageData, open_data
from distill.errors import ModelError, StoreError
from distill.models import zoo
from distill.models.foreign import Foreign, bare, described_by, fit_size, published
from distill.models.small import Enlarged
from distill.models.weights import fetch_weights
from distill.recipe.checks import check_recipe
from distill.recipe.importing import LOCAL_DIR, PICKLED, SAFETENSORS, TIMM
from distill.recipe.schema import ImportedRecipe, Recipe, TeacherRecipe
from distill.report.runs import RECORD, Run, locked, make_run, open_run
from distill.stages.common import as_teacher_sees, evaluator, model_spec, teacher_inputs
from distill.stages.teacher import refuse_another_teacher
from distill.store.atomic import check_regular, read_json, sha256_of
from distill.store.checkpoint import load_weights, save_weights
from distill.store.tensors import read_tensors
from distill.training.device import describe_device, prepare_device
from distill.training.events import Listener, MetricsFile, Notice, StageDone, StageSkipped, fan_out

_CONVERT = (
    "from timm.models import load_state_dict as load; from safetensors.torch import save_file as save; "
    "save({name: value.clone().contiguous() for name, value in load(%r).items()}, %r)"
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights from elsewhere.

    Attributes:
        source: where from, as the run folder will say: timm's name with its tag, or the path that was given.
        network: what they belong to.
        weights: the safetensors file.
        native: whether its tensors are named as timm's model names them; published weights timm may have to convert.
    """

    source: str
    network: Foreign
    weights: Path
    native: bool


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
    data = open_data(recipe)
    recipe = resolved(recipe, checkpoint, data)
    check_recipe(recipe, recipe.name)
    digest = teacher_inputs(recipe, data)
    folder = Path(recipe.checkpoints) / recipe.name
    with locked(folder):
        refuse_another_teacher(folder, recipe, digest, folder / "state" / "teacher.safetensors")
        if (folder / RECORD).exists() and (run := open_run(folder)).done("teacher", digest):
            listener(StageSkipped("teacher", str(folder), "already imported from the same weights"))
            return run, recipe
        began = time.monotonic()
        network = load_network(checkpoint, recipe, data).to(device).eval()
        listener = fan_out(MetricsFile(folder / "metrics.jsonl"), listener)
        for notice in _notices(checkpoint, recipe, data):
            listener(Notice(notice))
        metrics = _judged(network, recipe, data, device, listener)
        run = make_run(folder, recipe, kind="teacher", begun=digest)
        run.forget("teacher")
        files = {"model.safetensors": save_weights(folder / "model.safetensors", network.state_dict())}
        metrics["seconds"] = time.monotonic() - began
        run.finish("teacher", digest, metrics, files, describe_device(device), _provenance(checkpoint, recipe))
        listener(StageDone("teacher", str(folder), metrics["seconds"], run.metrics("teacher")))
    return run, recipe


def find_checkpoint(text: str, model: str | None, arguments: Mapping[str, Any]) -> Checkpoint:
    """The weights that `text` names, and what is said about them; nothing of the weights is believed yet.

    Args:
        text: timm:NAME, local-dir:FOLDER or a safetensors file.
        model: timm's name of the network, for a file.
        arguments: what else that network was built with.

    Raises:
        ModelError: the weights are not published or not in reach, the network is unknown, or not named.
        StoreError: no such file, or a pickled one.
    """
    is_file = not text.startswith((TIMM, LOCAL_DIR))
    if not is_file and (model is not None or arguments):
        raise ModelError(
            f"{text}: the network is named twice: it says itself which one it is",
            cure="Leave --model and teacher.model_args out; they are for a file of weights alone.",
        )
    if text.startswith(TIMM):
        return _published(text)
    if text.startswith(LOCAL_DIR):
        folder = Path(text.removeprefix(LOCAL_DIR)).expanduser()
        if not folder.is_dir():
            raise StoreError(f"{folder}: no such folder", cure="Name a folder with config.json and model.safetensors.")
        config = folder / "config.json"
        network = described_by(read_json(config), str(config))
        return Checkpoint(text, network, _weights_in(folder), native=True)
    path = Path(text).expanduser()
    check_regular(path)
    _refuse_pickle(path)
    if model is None:
        raise ModelError(
            f"{path}: a file of weights does not say which network they belong to",
            cure=f"Add --model NAME, timm's name of it; or, with a config.json beside it, say {LOCAL_DIR}{path.parent}",
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}
    return Checkpoint(text, bare(model, arguments, shapes), path, native=True)


def _published(text: str) -> Checkpoint:
    network = published(text.removeprefix(TIMM))
    source = f"{TIMM}{network.architecture}"
    try:
        weights = Path(fetch_weights(text.removeprefix(TIMM), network.architecture))
    except ModelError as error:
        raise ModelError(
            error.message,
            cure="Let the machine reach the Hub once (unset HF_HUB_OFFLINE), copy its cache here and set HF_HOME, "
            f"or name a folder that timm has saved: {LOCAL_DIR}FOLDER",
        ) from error
    return Checkpoint(source, network, weights, native=False)


def _weights_in(folder: Path) -> Path:
    """model.safetensors, or the only safetensors file there is."""
    files = sorted(folder.glob(f"*{SAFETENSORS}"))
    if folder / "model.safetensors" in files or len(files) == 1:
        return folder / "model.safetensors" if len(files) > 1 else files[0]
    if files:
        raise StoreError(
            f"{folder}: holds {len(files)} safetensors files and none is model.safetensors: "
            f"{', '.join(file.name for file in files[:5])}",
            cure="Give the file itself, with --model.",
        )
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != "config.json":
            _refuse_pickle(path, only=PICKLED)
    raise StoreError(f"{folder}: holds no safetensors file", cure="Save the model with timm's `save_for_hf`.")


def _refuse_pickle(path: Path, only: tuple[str, ...] = ()) -> None:
    """Every file that is not called a safetensors file is refused unopened; with `only`, those with such an ending."""
    if path.name.lower().endswith(SAFETENSORS) or (only and not path.name.lower().endswith(only)):
        return
    suffix = next((suffix for suffix in sorted(PICKLED, key=len, reverse=True) if path.name.endswith(suffix)), "")
    target = f"{str(path).removesuffix(suffix)}{SAFETENSORS}"
    raise StoreError(
        f"{path}: not a safetensors file. It was not opened: a pickled file can run code when it is",
        cure=f"Convert it, if you trust it: python -c {shlex.quote(_CONVERT % (str(path), target))}",
    )


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
    imported = ImportedRecipe(
        source=checkpoint.source,
        weights_sha256=sha256_of(checkpoint.weights),
        channels=network.channels,
        image_size=fit_size(network, classes=data.num_classes, image_size=height, asked=told.image_size),
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
    model = zoo.create(spec, pretrained=not checkpoint.native)
    if checkpoint.native:
        # The images' enlargement is ours, so the checkpoint knows nothing of it; unless it is an enlarged model's.
        ours = isinstance(model, Enlarged) and recipe.teacher.model != spec.architecture
        inner: nn.Module = model.body if ours else model  # type: ignore[assignment]
        _check_types(checkpoint.weights, inner)
        load_weights(checkpoint.weights, inner)
    bad = [name for name, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise StoreError(
            f"{checkpoint.weights}: {bad[0]!r}{more} holds values that are NaN or infinite",
            cure="The training that made it diverged, or the file is damaged: take another checkpoint.",
        )
    return model


def _check_types(path: Path, model: nn.Module) -> None:
    """Loading would turn integers into weights in silence: a quantised file is another network's."""
    found: Mapping[str, Tensor] = read_tensors(path)
    for name, value in model.state_dict().items():
        if name in found and found[name].is_floating_point() != value.is_floating_point():
            raise StoreError(
                f"{path}: {name!r} is {found[name].dtype}, the model's is {value.dtype}",
                cure="Save the weights in float32, float16 or bfloat16.",
            )


def _notices(checkpoint: Checkpoint, recipe: Recipe, data: ImageData) -> Iterator[str]:
    imported, names = recipe.teacher.imported, checkpoint.network.class_names
    channels, side, _ = data.shape
    sees = f"{imported.channels} x {imported.image_size} x {imported.image_size}"
    resized = "" if imported.image_size == side else f", resized from {side} x {side}"
    grey = "" if imported.channels == channels else ", the grey channel in each"
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (imported.mean, imported.std))
    yield f"teacher: {checkpoint.source} sees images as {sees}{resized}{grey}; mean {mean}; std {std}"
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
    judge = evaluator(as_teacher_sees(data, recipe), device, recipe.export.batch_size)
    validation, test = judge(network)
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
    return metrics | (test.named("test") if test.count else {})


def _provenance(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, str]:
    named = checkpoint.network.class_names is not None
    return {
        "source": checkpoint.source,
        "weights_sha256": recipe.teacher.imported.weights_sha256,
        "classes": "named by the checkpoint, as in the data" if named else "order taken on trust",
    }

"""Stage three: train a student on what a teacher's store holds. No teacher network is built here, unless asked for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from distill.data.loader import ImageData, open_data
from distill.errors import RunError, StoreError
from distill.models import zoo
from distill.recipe.checks import check_recipe
from distill.recipe.digest import digest, student_digest
from distill.recipe.losses import CATALOGUE, in_use, needs, needs_all_logits
from distill.recipe.schema import Recipe
from distill.recipe.student_checks import label_rule
from distill.report.lock import locked, waiting
from distill.report.run_names import find_run
from distill.report.runs import RECORD, WEIGHTS, Run, make_run, open_run
from distill.stages.common import after_scaling, evaluator, tell_left_out, write_selected
from distill.stages.finished import STORE, load_teacher, origin_of, teacher_weights
from distill.stages.settling import settle_student
from distill.stages.student_task import StudentTask
from distill.stages.teachers import LearnedLookup, OnlineTeaching, StoredTeaching, Teaching, same_place
from distill.store.atomic import sha256_of, write_bytes
from distill.store.logits import LogitStore
from distill.store.manifest import MANIFEST, Manifest, read_manifest
from distill.store.origin import Origin
from distill.training.device import describe_device, emulated_precision, prepare_device
from distill.training.events import Listener, MetricsFile, Notice, StageDone, StageSkipped, fan_out, files_read
from distill.training.loop import fit
from distill.training.schedule import build_schedule
from distill.training.task import Plan

STUDENTS = "students"


def train_student(teacher: Run, recipe: Recipe, listener: Listener) -> Run:
    """Trains the recipe's student on a finished teacher's store.

    The student lands in `students/` in the teacher's run folder, under a name that holds its model, loss and digest, so
    that students never overwrite each other.

    Args:
        teacher: the run folder of a teacher whose logits were exported.
        recipe: the teacher's recipe, perhaps with another `[student]`.
        listener: told of the progress.

    Returns:
        The student's run folder; `timm.create_model("local-dir:<folder>", pretrained=True)` reads it.

    Raises:
        UserError: anything that the user can mend.
        Interrupted: asked to stop; the same call goes on from there.
    """
    check_recipe(recipe, recipe.name)
    _refuse_a_student(teacher)
    more = more_teachers(recipe.student.more_teachers, Path(recipe.checkpoints), teacher.folder)
    if not recipe.student.online:
        _manifest_of(teacher)
    device = prepare_device(recipe)
    data = open_data(recipe, progress=files_read(listener))
    channels, side, _ = data.shape
    rules = [label_rule(run.recipe) for run in more]
    settled = settle_student(recipe, rules, channels=channels, image_size=side, classes=data.num_classes)
    recipe = settled.recipe
    weights, weights_sha256 = teacher_weights(teacher, recipe, data)
    inputs = student_inputs(teacher, more, recipe, weights_sha256)
    own_digest = student_digest(recipe, inputs)
    folder = teacher.folder / STUDENTS / student_name(recipe, own_digest)
    if run := _finished(folder, own_digest, listener):
        return run
    if not recipe.student.online:
        recipe = _as_stored(recipe, read_manifest(_manifest_of(teacher).parent))
    # Only when network, optimiser and stores stand is the folder made: a student that is refused leaves none behind.
    teaching = _teaching(teacher, more, recipe, data, weights, weights_sha256, device)
    if student_inputs(teacher, more, recipe, weights_sha256) != inputs:  # its name says what it has learned from
        raise StoreError(
            f"{teacher.folder}: its logits, or another teacher's, were exported anew meanwhile",
            cure="run the same command again.",
        )
    task = StudentTask(recipe, data, teaching, _learned(teaching, recipe, data, device), device)
    with locked(folder):
        if run := _finished(folder, own_digest, listener):  # by another process in the meantime
            return run
        return _train(task, folder, own_digest, teacher, settled.reasons, listener)


def _train(
    task: StudentTask, folder: Path, digest: str, teacher: Run, reasons: Sequence[str], listener: Listener
) -> Run:
    """Trains a student that nothing speaks against any more, and writes it into its folder, which is locked."""
    recipe, data, device = task.recipe, task.data, task.device
    metrics_file = MetricsFile(folder / "metrics.jsonl")
    listener = fan_out(metrics_file, listener)
    tell_left_out(data, listener)
    for reason in reasons:
        listener(Notice(reason))
    if slow := emulated_precision(device, recipe.student, "student"):
        listener(Notice(f"note: {slow}", warns=True))
    begun = teacher.record.stages["teacher"].digest
    run = make_run(folder, recipe, kind="student", begun=digest, teacher=begun)
    metrics = fit(task, _plan(task, folder, digest), listener, metrics_file)
    metrics |= after_scaling(task.judged, data, device, recipe.export.batch_size)
    run.finish("student", digest, metrics, _write(task, folder), describe_device(device))
    _state(folder).unlink(missing_ok=True)
    listener(StageDone("student", str(folder), metrics["seconds"], run.metrics("student")))
    return run


def _finished(folder: Path, digest: str, listener: Listener) -> Run | None:
    """The student of that digest, where it is trained already, which the listener is told."""
    if not (folder / RECORD).exists() or not (run := open_run(folder)).done("student", digest):
        return None
    with suppress(OSError):  # on a disk that is mounted read-only, though nothing be there; it is in nobody's way
        _state(folder).unlink(missing_ok=True)
    listener(StageSkipped("student", str(folder), "already trained with the same inputs"))
    return run


def student_name(recipe: Recipe, digest: str) -> str:
    """`resnet8-kd-T4-1a2b3c4d`."""
    loss = recipe.student.loss
    model = recipe.student.model.replace("/", "_").replace(":", "_")
    names = "+".join([loss.name, *loss.plus])
    temperature = "" if loss.temperature is None else f"-T{loss.temperature:g}"
    return f"{model}-{names}{temperature}-{digest[:8]}"


def _plan(task: StudentTask, folder: Path, digest: str) -> Plan:
    student = task.recipe.student
    schedule = build_schedule(task.optimizer, student.optimizer, epochs=task.epochs, steps=task.steps)
    evaluate = evaluator(task.data, task.device, task.recipe.export.batch_size)
    return Plan(
        "student",
        folder,
        digest,
        task.epochs,
        task.steps,
        schedule,
        evaluate,
        test_every_epoch=student.test_every_epoch,
        patience=student.patience,
    )


def _state(folder: Path) -> Path:
    return folder / "state" / "student.safetensors"


def more_teachers(names: Sequence[str], checkpoints: Path, own: Path) -> list[Run]:
    """The runs of a student's further teachers.

    Args:
        names: run folders, or names of runs.
        checkpoints: where runs of a name lie.
        own: the run folder of its own teacher, whose mean with itself would say nothing.

    Raises:
        RunError: one is no run, or a student's, or is named twice, or its logits are not exported.
    """
    more = [open_run(find_run(name, checkpoints)) for name in names]
    folders = [own.resolve(), *(run.folder.resolve() for run in more)]
    for run, folder in zip(more, folders[1:], strict=True):
        _refuse_a_student(run)
        if folders.count(folder) > 1:
            raise RunError(f"{run.folder}: is named twice as a teacher", cure="use student.teacher_weights.")
        _manifest_of(run)
    return more


def _refuse_a_student(run: Run) -> None:
    """As a teacher."""
    if run.record.kind != "teacher":
        raise RunError(f"{run.folder}: this is a student", cure=f"its teacher is {run.folder.resolve().parents[1]}.")


def _manifest_of(teacher: Run) -> Path:
    manifest = teacher.folder / STORE / MANIFEST
    if not manifest.is_file():
        cure = f"{waiting(teacher.folder)}run `distill export --teacher {teacher.folder}`."
        raise RunError(f"{teacher.folder}: no exported logits", cure=cure)
    return manifest


def student_inputs(teacher: Run, more: Sequence[Run], recipe: Recipe, weights_sha256: str) -> str:
    """Digest of what the student is taught with: the stores, or the network that runs in the first one's place.

    Raises:
        StoreError: a teacher's logits are not exported.
    """
    first = digest({"online": weights_sha256}) if recipe.student.online else sha256_of(_manifest_of(teacher))
    return digest([first, *(sha256_of(_manifest_of(run)) for run in more)]) if more else first


def _teaching(
    teacher: Run,
    more: list[Run],
    recipe: Recipe,
    data: ImageData,
    weights: Path,
    weights_sha256: str,
    device: torch.device,
) -> Teaching:
    wanted = needs(recipe.student.loss)
    if recipe.student.online:
        return OnlineTeaching(load_teacher(recipe, data, weights, device), data, recipe, wanted)
    origin = origin_of(data, recipe, weights_sha256)
    stores = [_open_store(_manifest_of(teacher).parent, origin, recipe, teacher.folder)]
    for run in more:
        folder = _manifest_of(run).parent
        _refuse_made_up_tails(folder, read_manifest(folder), recipe, run.folder)
        store = LogitStore.open(folder, reconstruct=True)
        same_place(stores[0], store, run.folder)
        stores.append(store)
    given = recipe.student.teacher_weights or (1.0,) * len(stores)
    shares = [weight / sum(given) for weight in given]
    return StoredTeaching(stores, shares, recipe.student.combine, wanted, data, device, recipe.seed)


def _learned(teaching: Teaching, recipe: Recipe, data: ImageData, device: torch.device) -> LearnedLookup | None:
    if "labels" not in needs(recipe.student.loss):
        return None
    assert isinstance(teaching, StoredTeaching)
    return LearnedLookup(teaching.stores[0].labels(), data.num_classes, device)


def _as_stored(recipe: Recipe, manifest: Manifest) -> Recipe:
    """With the store that the student learns from, whatever was asked for: its recipe says what it had."""
    held = {"format": manifest.format, "k": manifest.k}
    inside = {"features": bool(manifest.features), "maps": bool(manifest.maps)}
    return recipe.model_copy(update={"export": recipe.export.model_copy(update=held | inside)})


def _open_store(folder: Path, origin: Origin, recipe: Recipe, run: Path) -> LogitStore:
    """The store, after making sure that it holds what the recipe's views and loss ask for."""
    manifest = read_manifest(folder)
    stored = manifest.origin
    if stored.views != origin.views:
        changed = {name: value for name, value in origin.views.items() if stored.views.get(name) != value}
        assigned = (shlex.quote(f"views.{name}={json.dumps(value)}") for name, value in changed.items())
        views = " ".join(f"--set {assignment}" for assignment in assigned)
        raise StoreError(
            f"{folder}: holds other views: {stored.views}, expected {recipe.views.model_dump(mode='json')}",
            cure=f"leave [views] as the store has them, or run `distill export --teacher {run} {views}`.",
        )
    loss = recipe.student.loss
    held = {"features": manifest.features, "maps": manifest.maps}
    for name, _, _ in in_use(loss):
        for need in sorted(need for need in CATALOGUE[name].needs if not held.get(need, True)):
            raise StoreError(
                f'{folder}: holds no {need}, and the loss "{name}" learns from them',
                cure=f"run `distill export --teacher {run} --set export.{need}=true`.",
            )
    _refuse_made_up_tails(folder, manifest, recipe, run)
    return LogitStore.open(folder, expect=origin, reconstruct=True)


def _refuse_made_up_tails(folder: Path, manifest: Manifest, recipe: Recipe, run: Path) -> None:
    """A loss that reads all logits, and a store of the largest only, go together when the recipe insists.

    Raises:
        StoreError: it does not.
    """
    loss = recipe.student.loss
    reason = needs_all_logits(loss)
    if manifest.format == "topk" and reason and not loss.allow_topk:
        raise StoreError(
            f"{folder}: holds the {manifest.k} largest of {manifest.classes} logits only, and {reason}",
            cure="use a loss that does not, such as kd at T = 1, or export again: "
            f"`distill export --teacher {run} --set export.format=int8 --set "
            "export.k=none`, or pay (top-10 of 1,000 classes at T = 4: .5 nats, see docs/formats.md): "
            "--set student.loss.allow_topk=true.",
        )


def _write(task: StudentTask, folder: Path) -> dict[str, str]:
    """The finished student, as timm reads it, and the files' sha256."""
    files = write_selected(task.judged, task.recipe.student, folder)
    zoo.save_for_timm(
        task.judged,
        task.spec,
        folder,
        class_names=task.data.source.classes,
        mean=task.data.mean,
        std=task.data.std,
        write=write_bytes,
    )
    return files | {name: sha256_of(folder / name) for name in ("config.json", WEIGHTS)}

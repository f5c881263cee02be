"""Stage three: train a student on a store. No teacher network is built here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.bilevel.hygiene import training_forward
from distill.bilevel.targets import given_loss
from distill.bilevel.update import Update
from distill.data.loader import Batch, ImageData, open_data, steps_per_epoch, training_batches
from distill.errors import RunError, StoreError
from distill.losses.logit import kd
from distill.models import zoo
from distill.recipe.checks import check_recipe, needs_all_logits
from distill.recipe.digest import student_digest
from distill.recipe.schema import Recipe
from distill.report.runs import RECORD, Run, locked, make_run, open_run
from distill.seeding import derive
from distill.stages.common import build_network, evaluator, tell_left_out, write_selected
from distill.stages.export import STORE, origin_of, teacher_weights
from distill.store.atomic import sha256_of
from distill.store.logits import LogitStore
from distill.store.manifest import MANIFEST, read_manifest
from distill.store.origin import Origin
from distill.training.device import describe_device, prepare_device
from distill.training.events import Listener, MetricsFile, StageDone, StageSkipped, fan_out, files_read
from distill.training.loop import Plan, fit
from distill.training.schedule import build_schedule

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
    manifest = teacher.folder / STORE / MANIFEST
    if not manifest.is_file():
        raise RunError(
            f"{teacher.folder}: no exported logits", cure=f"run `distill export --teacher {teacher.folder}`."
        )
    device = prepare_device(recipe)
    data = open_data(recipe, progress=files_read(listener))
    origin = origin_of(data, recipe, teacher_weights(teacher, recipe, data)[1])
    digest = student_digest(recipe, sha256_of(manifest))
    folder = teacher.folder / STUDENTS / student_name(recipe, digest)
    with locked(folder):
        if (folder / RECORD).exists() and (run := open_run(folder)).done("student", digest):
            (folder / "state" / "student.safetensors").unlink(missing_ok=True)
            listener(StageSkipped("student", str(folder), "already trained with the same inputs"))
            return run
        store = _open_store(manifest.parent, origin, recipe, teacher.folder)
        metrics_file = MetricsFile(folder / "metrics.jsonl")
        listener = fan_out(metrics_file, listener)
        tell_left_out(data, listener)
        task = StudentTask(recipe, data, store, device)
        begun = teacher.record.stages["teacher"].digest
        run = make_run(folder, recipe, kind="student", begun=digest, teacher=begun)
        schedule = build_schedule(task.optimizer, recipe.student.optimizer, epochs=task.epochs, steps=task.steps)
        evaluate = evaluator(data, device, recipe.export.batch_size)
        plan = Plan("student", folder, digest, task.epochs, task.steps, schedule, evaluate)
        metrics = fit(task, plan, listener, metrics_file)
        run.finish("student", digest, metrics, _write(task, plan), describe_device(device))
        plan.state.unlink(missing_ok=True)
        listener(StageDone("student", str(folder), metrics["seconds"], run.metrics("student")))
    return run


def student_name(recipe: Recipe, digest: str) -> str:
    """`resnet8-kd-T4-1a2b3c4d`."""
    loss = recipe.student.loss
    model = recipe.student.model.replace("/", "_").replace(":", "_")
    temperature = f"-T{loss.temperature:g}" if loss.name == "kd" else ""
    return f"{model}-{loss.name}{temperature}-{digest[:8]}"


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
    reason = needs_all_logits(recipe.student.loss)
    if manifest.format == "topk" and reason and not recipe.student.loss.allow_topk:
        raise StoreError(
            f"{folder}: holds the {manifest.k} largest of {manifest.classes} logits only, and {reason}",
            cure=f"use T = 1, or export again: `distill export --teacher {run} --set export.format=int8 --set "
            "export.k=none`, or pay (top-10 of 1,000 classes at T = 4: .5 nats, see docs/formats.md): "
            "--set student.loss.allow_topk=true.",
        )
    return LogitStore.open(folder, expect=origin, reconstruct=True)


class StudentTask:
    """The student's side of `training.loop`."""

    def __init__(self, recipe: Recipe, data: ImageData, store: LogitStore, device: torch.device) -> None:
        student = recipe.student
        self.recipe, self.data, self.store, self.device = recipe, data, store, device
        self.seed = recipe.seed if student.seed is None else student.seed
        self.epochs = student.epochs
        self.rows = store.indices
        self.batch_size = student.batch_size
        self.steps = steps_per_epoch(self.rows.numel(), self.batch_size)
        self.spec, self.model, self.optimizer = build_network(student, "student", data, self.seed, device)
        self.update = Update(self.model, self.optimizer, student.precision, student.clip_norm)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """See `Task`."""
        return training_batches(
            self.data,
            self.rows,
            batch_size=self.batch_size,
            epoch=epoch,
            seed=self.seed,
            views=self.recipe.views,
            view_seed=self.recipe.seed,  # the store's: the pixels must be those that the teacher saw
            numbered=True,
            device=self.device,
            start=start,
        )

    def step(self, batch: Batch, epoch: int, number: int) -> dict[str, Tensor]:
        """See `Task`."""
        loss = self.recipe.student.loss
        seed = derive(self.seed, "student-forward", number)
        logits = training_forward(self.model, batch.images, seed=seed, precision=self.recipe.student.precision).float()
        hard = given_loss(logits, batch).mean()
        losses = {"hard": hard}
        total = hard
        if loss.name == "kd":
            teacher = self.store.rows(batch.rows, batch.view).to(self.device)
            soft = kd(logits, teacher, loss.temperature).mean()
            losses["soft"] = soft
            total = loss.hard_weight * hard + loss.soft_weight * soft
        self.update.backward(total)
        self.update.step()
        return {"loss": total.detach(), **{name: value.detach() for name, value in losses.items()}}

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """See `Task`; nothing of its own."""
        return {}

    def check(self) -> None:
        """See `Task`; the losses show everything."""

    def state_dict(self) -> dict[str, Any]:
        """See `Task`."""
        return self.update.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Task`."""
        self.update.load_state_dict(state)


def _write(task: StudentTask, plan: Plan) -> dict[str, str]:
    """The finished student, as timm reads it, and the files' sha256."""
    files = write_selected(task.model, task.recipe.student, plan.run)
    zoo.save_for_timm(
        task.model,
        task.spec,
        plan.run,
        class_names=task.data.source.classes,
        mean=task.data.mean,
        std=task.data.std,
    )
    return files | {name: sha256_of(plan.run / name) for name in ("config.json", "model.safetensors")}

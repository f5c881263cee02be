"""Stage one: train a teacher whose labels may be learned."""

from __future__ import annotations

import shlex
from pathlib import Path

from distill.data.loader import open_data
from distill.errors import RunError
from distill.recipe.checks import check_recipe
from distill.recipe.schema import Recipe
from distill.report.lock import locked
from distill.report.runs import RECORD, WEIGHTS, Run, make_run, open_run
from distill.stages.bare import bare_classes
from distill.stages.common import (
    after_scaling,
    evaluator,
    teacher_inputs,
    tell_left_out,
    write_left_out,
    write_selected,
)
from distill.stages.finished import imported_by
from distill.stages.held import refuse_another_teacher
from distill.stages.teacher_task import TeacherTask
from distill.store.atomic import sha256_of
from distill.store.checkpoint import save_weights
from distill.store.labels import write_labels
from distill.store.manifest import LABELS, LABELS_FOLDER, MANIFEST
from distill.training.device import describe_device, emulated_precision, prepare_device
from distill.training.events import Listener, MetricsFile, Notice, StageDone, StageSkipped, fan_out, files_read
from distill.training.loop import fit
from distill.training.schedule import build_schedule
from distill.training.task import Plan


def train_teacher(recipe: Recipe, listener: Listener) -> Run:
    """Trains the recipe's teacher, goes on where an interrupted run stopped, or finds it done.

    Returns:
        The run folder, with model.safetensors, best.safetensors, metrics.jsonl and labels/.

    Raises:
        UserError: anything that the user can mend.
        Interrupted: asked to stop; the same call goes on from there.
    """
    check_recipe(recipe, recipe.name)
    folder = Path(recipe.checkpoints) / recipe.name
    if recipe.teacher.imported.source:
        raise RunError(
            f"{folder}: its teacher is imported from {recipe.teacher.imported.source}, not trained",
            cure=f"run `{shlex.join(imported_by(recipe))}` with this recipe as --recipe.",
        )
    device = prepare_device(recipe)
    data = open_data(recipe, progress=files_read(listener))
    digest = teacher_inputs(recipe, data)
    with locked(folder, named=True):
        state = folder / "state" / "teacher.safetensors"
        refuse_another_teacher(folder, recipe, digest)
        if (folder / RECORD).exists() and (run := open_run(folder)).done("teacher", digest):
            state.unlink(missing_ok=True)
            run.keep_recipe(_beside_the_store(recipe, run.recipe))
            listener(StageSkipped("teacher", str(folder), "already trained with the same inputs"))
            return run
        metrics_file = MetricsFile(folder / "metrics.jsonl")
        listener = fan_out(metrics_file, listener)
        tell_left_out(data, listener)
        emulated = emulated_precision(device, recipe.teacher, "teacher")
        looked_at = f"{data.corrected} labels corrected by {recipe.data.corrections}" if data.corrected else ""
        for note in (*data.source.unused, *bare_classes(recipe, data), looked_at, emulated):
            if note:
                listener(Notice(f"note: {note}", warns=True))
        task = TeacherTask(recipe, data, device, listener)
        # Only now, when data, model and estimator stand, is the folder taken: a failed first try blocks no name.
        run = make_run(folder, recipe, kind="teacher", begun=digest)
        run.forget("teacher")
        schedule = build_schedule(task.optimizer, recipe.teacher.optimizer, epochs=task.epochs, steps=task.steps)
        evaluate = evaluator(task.data, device, recipe.export.batch_size)
        each = recipe.teacher.test_every_epoch
        plan = Plan("teacher", folder, digest, task.epochs, task.steps, schedule, evaluate, test_every_epoch=each)
        metrics = fit(task, plan, listener, metrics_file)
        metrics |= after_scaling(task.judged, data, device, recipe.export.batch_size)
        run.finish("teacher", digest, metrics, _write(task, plan, run), describe_device(device))
        plan.state.unlink(missing_ok=True)
        listener(StageDone("teacher", str(folder), metrics["seconds"], run.metrics("teacher")))
    return run


def _beside_the_store(recipe: Recipe, old: Recipe) -> Recipe:
    """What a finished teacher's folder says from now on: its student may be another, its data may have been moved.

    What the store was made by stays as it is; an export that makes another says so itself.
    """
    views = recipe.views.model_copy(update={"count": old.views.count})
    return recipe.model_copy(update={"export": old.export, "views": views})


def _write(task: TeacherTask, plan: Plan, run: Run) -> dict[str, str]:
    """The finished teacher's files and their sha256."""
    files = write_selected(task.model, task.recipe.teacher, run.folder)
    files[WEIGHTS] = save_weights(run.folder / WEIGHTS, task.model.state_dict())
    files |= write_left_out(task.data, run.folder)
    if (labels := task.rule.kept()) is not None:
        folder = run.folder / LABELS_FOLDER
        write_labels(folder, labels, {"teacher_digest": plan.digest})
        files |= {f"{LABELS_FOLDER}/{name}": sha256_of(folder / name) for name in (LABELS, MANIFEST)}
    return files

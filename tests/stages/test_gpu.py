"""Whole stages on a GPU: no step waits for it, it trains as the CPU does, and what it leaves is read anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill.bilevel.estimators import ESTIMATORS
from distill.data.loader import Batch, open_data
from distill.recipe.schema import Recipe
from distill.report.runs import open_run
from distill.stages.bench import bench
from distill.stages.pipeline import run_pipeline
from distill.stages.student_task import StudentTask
from distill.stages.teacher import train_teacher
from distill.stages.teacher_task import TeacherTask
from distill.stages.verify import verify_path
from distill.store.labels import read_labels
from distill.training.interrupt import Interrupted
from tests.nosync import gpu_must_not_wait
from tests.stages.test_resume import StopAt, ignore

pytestmark = pytest.mark.gpu

Tiny = Callable[..., Recipe]
LABELS: dict[str, tuple[str, ...]] = {
    "onehot": ("rule=onehot",),
    "smoothing": ("rule=smoothing",),
    "online-smoothing": ("rule=online-smoothing",),
    "bootstrap": ("rule=bootstrap",),
    "elr": ("rule=elr",),
    "joint": ("rule=joint",),
    "pencil": ("rule=pencil",),
    "class, next batch": ("rule=class", "meta=next-batch"),
    "class and instance": ("rule=class+instance", "meta=next-batch"),
    "instance, adam": ("rule=instance", "optimizer=adam"),
    "instance, normalised rows": ("rule=instance", "optimizer=normalised"),
    "instance, projected": ("rule=instance", "parametrisation=projected"),
    "robust": ("settings=robust",),
    "proximal": ("settings=robust", "pulls.proximal=true", "pulls.learn_temperature=true", "step=10"),
    "repeats": ("settings=robust", "pulls.proximal=true", "pulls.repeats=10"),
    "judges trained on": ("rule=instance", "divergence=reverse", "pulls.posterior=1", "meta_joins=always"),
    "pulls, next batch": ("rule=instance", "meta=next-batch", "pulls.answers=0.3", "momentum=0.5"),
    "fixed mass": ("rule=class", "parametrisation=fixed-mass"),
    "slow network": ("rule=instance", "pulls.answers=0.3", "pulls.ema_decay=0.9"),
}


def labels(name: str) -> list[str]:
    return [f"teacher.labels.{field}" for field in LABELS[name]]


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LABELS)
def test_a_step_waits_for_nothing(tiny: Tiny, name: str, precision: str, backend: str) -> None:
    recipe = tiny("device=cuda", f"teacher.precision={precision}", *labels(name))
    learned = recipe.teacher.labels.model_copy(update={"backend": backend})
    recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"labels": learned})})
    task = TeacherTask(recipe, open_data(recipe), torch.device("cuda"), ignore)
    task.model.train()
    epoch = recipe.teacher.labels.warmup_epochs + 1
    first = epoch * task.steps
    batches = task.batches(epoch, 0)
    for number in (first + 1, first + 2):  # compiles; nothing is probed again
        task.step(next(batches), epoch, number)
    with gpu_must_not_wait():
        task.step(next(batches), epoch, first + 3)
    task.check()


@pytest.mark.parametrize("name", ["onehot", "class, next batch", "robust"])
def test_it_trains_as_the_cpu_does(tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps in float32 without TF32; the two round differently, so no more than that.

    Not of Adam's rows, whose first steps are the gradient's sign: rounding decides it where there is next to none.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = []
    for device in ("cpu", "cuda"):
        recipe = tiny(f"device={device}", "teacher.labels.warmup_epochs=0", *labels(name))
        task = TeacherTask(recipe, open_data(recipe), torch.device(device), ignore)
        task.model.train()
        for number, batch in zip(range(1, 4), task.batches(0, 0), strict=False):
            task.step(batch, 0, number)
        kept = task.rule.kept()
        tables = {} if kept is None else {"labels": kept.labels}
        found.append({n: t.cpu().double() for n, t in {**task.model.state_dict(), **tables}.items()})
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key], expected, rtol=2e-2, atol=2e-3, msg=key)


@pytest.mark.parametrize("loss", ["kd", "dkd", "features"])
def test_from_images_to_a_student(tiny: Tiny, tmp_path: Path, loss: str) -> None:
    """In half precision, channels last; the store, the labels and the weights that it leaves pass every check."""
    more = ("export.features=true",) if loss == "features" else ()
    recipe = tiny(
        "device=cuda",
        "teacher.precision=bfloat16",
        "teacher.channels_last=true",
        "student.precision=bfloat16",
        f"student.loss.name={'fitnet' if loss == 'features' else loss}",
        *more,
    )
    run_pipeline(recipe, ignore)
    assert open_run(tmp_path / "tiny").metrics("teacher")["test_accuracy"] > 0.2
    assert verify_path(tmp_path / "tiny") > 0
    assert read_labels(tmp_path / "tiny/labels").labels.device.type == "cpu"


@pytest.mark.parametrize(
    ("loss", "views"),
    [(loss, "count=2") for loss in ("kd", "ctkd", "ols", "crd", "labels")]
    + [(loss, "mixup=0.8") for loss in ("kd", "crd", "labels")],
)
def test_a_students_step_waits_for_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, loss: str, views: str) -> None:
    step = StudentTask.step

    def watched(task: StudentTask, batch: Batch, epoch: int, number: int) -> dict[str, Tensor]:
        if number < 3:  # they compile
            return step(task, batch, epoch, number)
        with gpu_must_not_wait():
            return step(task, batch, epoch, number)

    monkeypatch.setattr(StudentTask, "step", watched)
    more = ("student.ema_decay=0.9", "student.micro_batches=2", f"export.features={str(loss == 'crd').lower()}")
    recipe = tiny("device=cuda", "teacher.epochs=2", f"views.{views}", f"student.loss.name={loss}", *more)
    _, student = run_pipeline(recipe, ignore)
    assert student.metrics("student")["epoch"] == recipe.student.epochs


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_every_estimator_is_measured(tiny: Tiny, precision: str) -> None:
    report = bench(tiny("device=cuda", f"teacher.precision={precision}"), ignore, rounds=1)
    assert not report.refused
    cosines = {variant.name.split("/")[1]: variant.cosine for variant in report.variants}
    assert set(ESTIMATORS) <= set(cosines)
    assert cosines["forward-mode"] > (0.999 if precision == "float32" else 0.98)


def test_an_interrupted_run_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny("device=cuda")
    with pytest.raises(Interrupted):
        train_teacher(recipe, StopAt("teacher", 1, 2))
    run = train_teacher(recipe, ignore)
    assert run.metrics("teacher")["test_accuracy"] > 0.3


def test_a_run_of_the_gpu_goes_on_without_one(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train_teacher(tiny("device=cuda"), StopAt("teacher", 1, 2))
    assert train_teacher(tiny("device=cpu"), ignore).metrics("teacher")["test_accuracy"] > 0.3

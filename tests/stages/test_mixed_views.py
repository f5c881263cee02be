"""Every view there is, through all stages: stored logits are the teacher's of the pixels that the student is fed."""

from __future__ import annotations

import pytest
import torch

from distill.bilevel.step import PlainStep, Training
from distill.bilevel.targets import meta_loss
from distill.data.loader import open_data
from distill.errors import StoreError, UserError
from distill.labels.fixed import Smoothing
from distill.losses.soft import soft_cross_entropy
from distill.stages.check import check_plan
from distill.stages.finished import load_teacher
from distill.stages.pipeline import run_pipeline
from distill.stages.student import train_student
from distill.stages.student_task import StudentTask
from distill.stages.teacher_task import TeacherTask
from distill.stages.teachers import StoredTeaching
from distill.store.logits import LogitStore
from distill.training.events import Event

CPU = torch.device("cpu")
EVERYTHING = (
    "views.crop_padding=0",
    "views.resized_crop=0.3,1",
    "views.flip=true",
    "views.randaugment=2",
    "views.brightness=0.4",
    "views.contrast=0.4",
    "views.erasing=0.5",
    "views.mixup=0.8",
    "views.cutmix=1",
    "views.mix_probability=0.9",
    "views.count=3",
    "teacher.labels.rule=smoothing",
    "teacher.epochs=1",
    "student.epochs=2",
    "export.batch_size=70",  # neither the student's batches nor the shards
)


def ignore(event: Event) -> None:
    pass


@pytest.mark.parametrize("model", ["resnet8", "test_vit"])
def test_stored_logits_belong_to_the_pixels_that_the_student_sees(tiny, model: str) -> None:
    recipe = tiny(*EVERYTHING, f"teacher.model={model}")
    teacher, student = run_pipeline(recipe, ignore)
    assert student.record.stages["student"].metrics["kd"] > 0
    data = open_data(recipe)
    store = LogitStore.open(teacher.folder / "logits")
    network = load_teacher(recipe, data, teacher.folder / "model.safetensors", CPU)
    wanted = frozenset({"logits"})
    teaching = StoredTeaching([store], [1.0], "logits", wanted, data, CPU, recipe.seed)
    task = StudentTask(student.recipe, data, teaching, None, CPU)
    seen = torch.zeros(3, dtype=torch.int64)
    for epoch in range(3):
        for batch in task.batches(epoch, 0):
            with torch.no_grad():
                expected = network(batch.images).float()
            stored = store.rows(batch.rows, batch.view)
            # fp16 keeps 11 bits; the float32 forward of another batch size differs in its last ones.
            torch.testing.assert_close(stored, expected, rtol=2.0**-10, atol=2e-4)
            seen += torch.bincount(batch.view, minlength=3)
            assert batch.mix is not None
            assert torch.isin(batch.mix.indices, store.indices).all()
            assert torch.equal(batch.mix.given, data.labels.given[batch.mix.indices])
            assert 0.5 < (batch.mix.share < 1).double().mean() <= 1
    assert (seen > 0).all()


def test_the_hard_loss_is_that_of_the_mixed_target(tiny) -> None:
    recipe = tiny(*EVERYTHING)
    data = open_data(recipe)
    task = TeacherTask(recipe, data, CPU, ignore)
    batch = next(task.batches(0, 0))
    logits = torch.randn(len(batch.rows), 10, generator=torch.Generator().manual_seed(0))
    own, other = (torch.nn.functional.one_hot(t, 10).float() for t in (batch.given, batch.mix.given))
    target = batch.mix.share[:, None] * own + (1 - batch.mix.share[:, None]) * other
    torch.testing.assert_close(meta_loss(logits, batch, 0.0), soft_cross_entropy(logits, target))


def test_a_plain_step_trains_on_the_mixed_target(tiny) -> None:
    """Its gradient is that of soft cross-entropy with the mixed, smoothed label."""
    recipe = tiny(*EVERYTHING, "teacher.optimizer.momentum=0", "teacher.optimizer.weight_decay=0")
    task = TeacherTask(recipe, open_data(recipe), CPU, ignore)
    batch = next(task.batches(0, 0))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    before = [p.detach().clone() for p in model.parameters()]
    rule = Smoothing(10, 0.1)
    own, other = (rule.labels(t) for t in (batch.given, batch.mix.given))
    target = batch.mix.share[:, None] * own + (1 - batch.mix.share[:, None]) * other
    expected = soft_cross_entropy(model(batch.images), target).mean()
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    training = Training(model, torch.optim.SGD(model.parameters(), lr=0.5), rule, seed=0)
    told = PlainStep(training)(batch, 0, learn=False)
    torch.testing.assert_close(told["loss"], expected.detach())
    for parameter, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.5 * gradient)


@pytest.mark.parametrize("meta", ["held-out", "next-batch"])
def test_labels_learn_from_mixed_views(tiny, meta: str) -> None:
    recipe = tiny("views.mixup=0.2", "views.cutmix=1", f"teacher.labels.meta={meta}", f"name={meta}")
    task = TeacherTask(recipe, open_data(recipe), CPU, ignore)
    batch = next(task.batches(0, 0))
    assert batch.mix is not None
    assert torch.isin(batch.mix.indices, task.rows).all(), "an image that judges must not be trained on"
    assert meta == "next-batch" or task.meta_batch(0).mix is None
    before = task.rule.table.phi.clone()
    for number, batch in enumerate(task.batches(0, 0)):
        task.step(batch, 0, number)
    task.check()
    assert not torch.equal(task.rule.table.phi, before)


def test_another_population_is_refused(tiny) -> None:
    """Partners come from the stored rows: a store of other rows holds other pixels."""
    recipe = tiny(*EVERYTHING, "student.epochs=1")
    teacher, _ = run_pipeline(recipe, ignore)
    indices = teacher.folder / "logits/indices.safetensors"
    kept = indices.read_bytes()
    changed = bytearray(kept)
    changed[-8] ^= 1
    indices.write_bytes(changed)
    with pytest.raises(StoreError, match=r"indices\.safetensors"):
        train_student(teacher, tiny(*EVERYTHING, "student.epochs=2", "student.batch_size=32"), ignore)
    indices.write_bytes(kept)
    for change in ("data.train=190", "data.meta=50", "views.mixup=0.4", "seed=1"):
        with pytest.raises(UserError, match="another recipe"):
            train_student(teacher, tiny(*EVERYTHING, change), ignore)
    with pytest.raises(StoreError, match=r"--set views\.count=2`"):
        train_student(teacher, tiny(*EVERYTHING, "views.count=2"), ignore)


def test_check_says_the_views_in_words(tiny) -> None:
    report = check_plan(tiny(*EVERYTHING, "views.hue=0.1", "compare.teachers=onehot"), "tiny.toml")
    assert report.problems == []
    line = next(line for line in report.text().splitlines() if line.strip().startswith("views"))
    for word in ("resized crop", "RandAugment", "erasing", "mixup", "cutmix", "stored 3"):
        assert word in line
    assert any("[views] hue" in note and "no colour" in note for note in report.notes)

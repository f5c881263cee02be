"""Whole students: every loss on one store, what else a recipe may ask of them, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import distill.models.zoo  # noqa: F401  (registers the CIFAR nets)
from distill.cli.entry import run as run_command
from distill.data.loader import open_data
from distill.errors import ModelError, RecipeError, RunError, StoreError
from distill.losses.criterion import Criterion
from distill.losses.lesson import Outputs
from distill.losses.terms import Sizes
from distill.recipe.load import override, parse_recipe
from distill.recipe.losses import CATALOGUE, LossRecipe, settle
from distill.recipe.schema import Recipe
from distill.report.runs import Run, open_run
from distill.stages import student as stage
from distill.stages.compare import compare
from distill.stages.export import export_teacher
from distill.stages.finished import load_teacher, teacher_weights
from distill.stages.pipeline import run_teacher
from distill.stages.settling import settle_student
from distill.stages.student import train_student
from distill.stages.student_task import StudentTask
from distill.stages.teachers import OnlineTeaching, StoredTeaching, Teaching, lesson_of
from distill.stages.verify import verify_path
from distill.store.logits import LogitStore
from distill.store.tensors import read_tensors
from distill.training.events import Event, Notice
from distill.training.interrupt import Interrupted
from tests.locks import busy
from tests.stages.conftest import TINY
from tests.stages.test_resume import StopAt, same

SHORT = ("teacher.epochs=1", "student.epochs=2", "export.features=true", "export.maps=true")


def ignore(event: Event) -> None:
    pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with instance labels, its store with features and maps, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = override(parse_recipe(TINY, "tiny.toml", [f'checkpoints="{folder}"']), SHORT)
    return run_teacher(recipe, ignore).folder


@pytest.fixture
def student(teacher: Run, tmp_path: Path):
    """`student("student.loss.name=dkd")`: trained on the teacher's store, with overrides."""

    def train(*assignments: str, listener=ignore) -> Run:
        recipe = override(teacher.recipe, [f'checkpoints="{tmp_path}"', *assignments])
        return train_student(teacher, recipe, listener)

    return train


def epochs_of(run: Run) -> list[dict[str, float]]:
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    return [line["metrics"] for line in lines if line["event"] == "epoch"]


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_loss_trains_a_student_that_timm_reads(student, name: str) -> None:
    run = student(f"student.loss.name={name}", "student.epochs=1")
    told = epochs_of(run)[-1]
    expected = {"loss", "hard", "images_per_second", "validation_nll", "validation_ece", "test_accuracy"}
    expected |= {"agreement", "teacher_kl"} | ({name} - {"ce"})
    assert expected <= told.keys()
    assert timm.create_model(f"local-dir:{run.folder}", pretrained=True)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert f"resnet8-{name}" in run.folder.name
    assert (run.folder / "best.safetensors").is_file()


HARD = (
    "student.loss.name=fitnet",
    "student.loss.plus.ctkd.weight=1",
    "student.loss.plus.crd.negatives=32",
    "student.loss.plus.ols.weight=1",
    "student.loss.plus.attention.weight=1",
    "student.ema_decay=0.9",
    "student.micro_batches=3",
    "student.clip_norm=1.0",
    "student.optimizer.name=adamw",
    "student.optimizer.lr=0.001",
)


@pytest.mark.parametrize(("epoch", "step"), [(0, 2), (1, 1)])
def test_an_interrupted_student_with_everything_ends_with_the_same_bits(student, epoch: int, step: int) -> None:
    whole = student(*HARD, "student.seed=7")
    weights = read_tensors(whole.folder / "model.safetensors")
    whole.folder.rename(whole.folder.with_name("whole"))
    with pytest.raises(Interrupted):
        student(*HARD, "student.seed=7", listener=StopAt("student", epoch, step))
    stopped = student(*HARD, "student.seed=7")
    assert all(
        torch.equal(tensor, weights[name])
        for name, tensor in read_tensors(stopped.folder / "model.safetensors").items()
    )
    assert same(stopped.folder / "best.safetensors", stopped.folder.with_name("whole") / "best.safetensors")


@pytest.mark.parametrize(
    "fields",
    [
        ("student.channels_last=true", "student.optimizer.name=lamb"),  # whose step has sums over moments
        ("student.optimizer.name=adafactorbv",),  # whose settings hold a type
    ],
)
def test_an_interrupted_student_of_another_optimiser_ends_with_the_same_bits(student, fields: tuple[str, ...]) -> None:
    fields = (*fields, "student.optimizer.lr=0.001")
    whole = student(*fields)
    whole.folder.rename(moved := whole.folder.with_name("whole"))
    with pytest.raises(Interrupted):
        student(*fields, listener=StopAt("student", 1, 1))
    assert same(student(*fields).folder / "model.safetensors", moved / "model.safetensors")


def test_a_last_step_that_goes_astray_is_told_as_such(student) -> None:
    with pytest.raises(RunError, match=r"the student's validation_\w+ is (nan|inf) in epoch 1, step 1") as found:
        student("student.optimizer.lr=1e6", "student.epochs=1", "student.batch_size=1000")
    assert "student.optimizer.lr" in found.value.cure


def test_parts_of_a_lowered_batch_have_two_images(student) -> None:
    run = student("student.batch_size=5000", "student.micro_batches=2500", "student.epochs=1")
    again = student("student.batch_size=5000", "student.micro_batches=130", "student.epochs=1")
    assert same(run.folder / "model.safetensors", again.folder / "model.safetensors")


def test_a_refused_student_leaves_the_teacher_s_run_sound(student, teacher: Run) -> None:
    refused = {
        "student.model=resnet999": (ModelError, "resnet999"),
        "student.optimizer.name=adamm": (RecipeError, "adamm"),
        "views.count=2": (StoreError, "holds other views"),
    }
    for field, (error, told) in refused.items():
        with pytest.raises(error, match=told):
            student(field)
    assert not list(teacher.folder.glob("students/*"))
    assert verify_path(teacher.folder)


def test_a_student_in_another_teacher_s_folder_is_not_sound(student, teacher: Run, tmp_path: Path) -> None:
    run = student("student.epochs=1")
    other = open_run(Path(shutil.copytree(teacher.folder, tmp_path / "other")))
    record = json.loads((other.folder / "run.json").read_text())
    record["stages"]["teacher"]["digest"] = "0" * 64
    (other.folder / "run.json").write_text(json.dumps(record))
    assert verify_path(teacher.folder)
    with pytest.raises(StoreError, match=r"run.json: is another teacher's student, .* expected 000000000000") as found:
        verify_path(other.folder)
    assert run.folder.name in found.value.message


def test_who_cannot_teach(student, teacher: Run) -> None:
    with pytest.raises(RunError, match="named twice as a teacher"):
        student(f'student.more_teachers=["{teacher.folder}"]')
    pupil = student("student.epochs=1")
    with pytest.raises(RunError, match="this is a student"):
        train_student(pupil, pupil.recipe, ignore)


def test_a_comparison_is_refused_before_its_first_teacher(teacher: Run, tmp_path: Path) -> None:
    fields = (f'checkpoints="{tmp_path}"', "teacher.labels.rule=onehot", "compare.teachers=onehot,class")
    recipe = override(teacher.recipe, [*fields, "teacher.epochs=0"])
    with pytest.raises(RecipeError, match=r"tiny: teacher class, seed 0: \[teacher\] epochs: found 0, but"):
        compare(recipe, ignore)
    assert not (tmp_path / "tiny-compare").exists()


def test_a_comparison_at_temperatures_that_a_top_k_store_can_read(teacher: Run, tmp_path: Path) -> None:
    fields = (f'checkpoints="{tmp_path}"', "teacher.labels.rule=onehot", "compare.teachers=onehot", "student.epochs=1")
    recipe = override(teacher.recipe, [*fields, "export.format=topk", "export.k=3", "compare.temperatures=1"])
    assert [arm.temperature for arm in compare(recipe, ignore).comparison.arms] == [1.0]


def test_the_same_loss_takes_a_stored_and_an_online_teacher(student, teacher: Run) -> None:
    """On the same views both give the same outputs, but for float16, and so the same value of every loss."""
    recipe = teacher.recipe
    recipe = settle_student(recipe, channels=1, image_size=8, classes=10).recipe
    data = open_data(recipe)
    wanted = frozenset({"logits", "features", "maps"})
    weights, _ = teacher_weights(teacher, recipe, data)
    online = OnlineTeaching(load_teacher(recipe, data, weights, torch.device("cpu")), data, recipe, wanted)
    train_student(teacher, recipe, ignore)
    task = StudentTask(recipe, data, _stored(teacher, recipe, wanted), None, torch.device("cpu"))
    batch = next(task.batches(0, 0))
    stored, made = task.teaching.outputs(batch), online.outputs(batch)
    assert online.feature_width == task.teaching.feature_width == stored.features.shape[1]
    assert torch.allclose(stored.logits, made.logits, atol=5e-3)
    assert torch.allclose(stored.features, made.features, atol=5e-3)
    own = Outputs(torch.randn(64, 10), torch.randn(64, online.feature_width), made.maps)
    for name in set(CATALOGUE) - {"crd", "labels"}:
        settled = settle(LossRecipe(name=name), "onehot", 2).loss
        torch.manual_seed(0)
        criterion = Criterion(settled, Sizes(10, online.feature_width, online.feature_width, 100), 2)
        lessons = [lesson_of(batch, each, None, None) for each in (task.teaching, online)]
        values = [criterion(own, lesson, 0)["loss"].item() for lesson in lessons]
        assert values[0] == pytest.approx(values[1], rel=5e-3), name


def _stored(teacher: Run, recipe: Recipe, wanted: frozenset):
    store = LogitStore.open(teacher.folder / "logits")
    return StoredTeaching([store], [1.0], "logits", wanted, open_data(recipe), torch.device("cpu"), 0)


def test_an_online_student_needs_no_store_and_shows_endless_views(student, teacher: Run) -> None:
    shutil.rmtree(teacher.folder / "logits")
    run = student("student.online=true", "student.loss.name=rkd")
    assert epochs_of(run)[-1]["agreement"] >= 0
    assert run.recipe.student.online


def test_parts_of_a_batch_train_like_the_whole(student) -> None:
    """Where the network has no BatchNorm, but for rounding."""
    fields = ("student.model=test_vit", "student.optimizer.lr=0.01", "student.clip_norm=0.5")
    runs = [student(*fields, f"student.micro_batches={parts}") for parts in (1, 4)]
    one, four = (read_tensors(run.folder / "model.safetensors") for run in runs)
    assert all(torch.allclose(tensor, four[name], atol=2e-5) for name, tensor in one.items())
    assert epochs_of(runs[0])[0]["loss"] == pytest.approx(epochs_of(runs[1])[0]["loss"], rel=1e-4)


def test_a_mean_of_the_weights_is_judged_and_kept(student) -> None:
    plain, mean = student(), student("student.ema_decay=0.5")
    assert epochs_of(plain)[-1]["loss"] == epochs_of(mean)[-1]["loss"]  # the training is the same
    assert not same(plain.folder / "model.safetensors", mean.folder / "model.safetensors")


def test_training_stops_when_validation_gets_no_better(student) -> None:
    run = student("student.epochs=12", "student.patience=2", "student.optimizer.lr=1e-7")
    told = run.metrics("student")
    assert told["epoch"] == told["best_epoch"] + 2 < 12


def test_stores_of_several_teachers_are_averaged(student, teacher: Run, tmp_path: Path) -> None:
    other = override(teacher.recipe, [f'checkpoints="{tmp_path}"', "name=other", "teacher.labels.rule=smoothing"])
    run_teacher(other, ignore)
    several = [
        student('student.more_teachers=["other"]', *more)
        for more in ((), ("student.teacher_weights=3,1",), ("student.combine=probabilities",))
    ]
    alone = student()
    kl = [epochs_of(run)[0]["teacher_kl"] for run in (alone, *several)]
    assert len(set(kl)) == 4
    weighted = student('student.more_teachers=["other"]', "student.teacher_weights=1,0")
    assert same(weighted.folder / "model.safetensors", alone.folder / "model.safetensors")
    moved = override(
        teacher.recipe, [f'checkpoints="{tmp_path}"', "name=moved", "seed=9", "teacher.labels.rule=onehot"]
    )
    run_teacher(moved, ignore)
    with pytest.raises(StoreError, match=r"differs from .* in: given labels sha256, view seed, images"):
        student('student.more_teachers=["moved"]')


def test_a_store_without_features_says_how_to_get_them(student, teacher: Run, tmp_path: Path) -> None:
    recipe = override(teacher.recipe, [f'checkpoints="{tmp_path}"', "export.features=false", "export.maps=false"])
    export_teacher(teacher, recipe, ignore)
    for name, need in (("rkd", "features"), ("attention", "maps")):
        with pytest.raises(StoreError, match=f"holds no {need}") as found:
            student(f"student.loss.name={name}", f"export.{need}=true")
        assert f"--set export.{need}=true" in found.value.cure
        with pytest.raises(RecipeError, match=f"--set export.{need}=true"):
            student(f"student.loss.name={name}", f"export.{need}=false")


def test_a_store_that_is_exported_anew_meanwhile_is_not_learned_from(student, teacher: Run, monkeypatch) -> None:
    """Its folder's name, and its record, would be of the store before."""

    def late(*given: Any) -> Teaching:
        export_teacher(open_run(teacher.folder), override(teacher.recipe, ["export.format=int8"]), ignore)
        return opened(*given)

    opened = stage._teaching
    monkeypatch.setattr(stage, "_teaching", late)
    with pytest.raises(StoreError, match="exported anew meanwhile"):
        student()
    assert not list(teacher.folder.glob("students/*"))


def test_a_student_beside_an_export_is_told_to_wait(student, teacher: Run) -> None:
    (teacher.folder / "logits/manifest.json").unlink()
    with busy(teacher.folder), pytest.raises(RunError, match="no exported logits") as beside:
        student()
    assert beside.value.cure.startswith("wait for the process that is at work there")
    with pytest.raises(RunError, match="no exported logits") as idle:
        student()
    assert idle.value.cure.startswith("run `distill export")


def test_an_untrained_teacher_is_a_control(tiny) -> None:
    recipe = tiny("teacher.epochs=0", "teacher.labels.rule=onehot", "student.epochs=1")
    run = run_teacher(recipe, ignore)
    told = run.metrics("teacher")
    assert told["epoch"] == told["best_epoch"] == 0
    assert told["test_accuracy"] < 0.4
    assert train_student(run, recipe, ignore).metrics("student")["agreement"] >= 0
    with pytest.raises(RecipeError, match="expected 1 or more"):
        run_teacher(tiny("teacher.epochs=0"), ignore)


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (("student.loss.standardise=true",), "[student.loss]"),
        (("student.loss.name=dkd", "student.loss.plus.kd.standardise=true"), "[student.loss.plus.kd]"),
    ],
)
def test_two_standardised_classes_teach_nothing(tiny, overrides: tuple[str, ...], place: str) -> None:
    recipe = tiny(*overrides)
    with pytest.raises(RecipeError, match="images of two classes") as refused:
        settle_student(recipe, channels=1, image_size=8, classes=2)
    assert refused.value.message.startswith(f"{place} standardise: found true")
    settle_student(recipe, channels=1, image_size=8, classes=3)


def test_a_student_that_nobody_chose_has_a_quarter_of_the_teacher(tiny) -> None:
    for model, side, expected in (("resnet20", 8, "resnet8"), ("resnet18", 32, "resnet8x4"), ("resnet50", 224, None)):
        recipe = tiny(f"teacher.model={model}", 'student.model=""')
        settled = settle_student(recipe, channels=3, image_size=side, classes=10)
        assert expected is None or settled.recipe.student.model == expected
        assert "parameters to the teacher's" in settled.reasons[0]


def test_what_was_chosen_is_told_and_kept(student) -> None:
    told: list[str] = []
    run = student('student.model=""', listener=lambda e: told.append(e.message) if isinstance(e, Notice) else None)
    assert any("temperature 1 and not 4" in line for line in told)
    assert any(line.startswith("student resnet8:") for line in told)
    assert run.recipe.student.model == "resnet8"
    assert run.recipe.student.loss.temperature == 1
    assert run.recipe.student.loss.soft_weight == 0.9


def test_the_command_line_takes_another_loss_with_its_own_settings(teacher: Run, monkeypatch, capsys) -> None:
    monkeypatch.chdir(teacher.folder.parent)
    place = f'checkpoints="{teacher.folder.parent}"'
    words = ["distill", "student", "--teacher", str(teacher.folder), "--set", place]
    short = ["--set", "student.epochs=1"]
    monkeypatch.setattr("sys.argv", [*words, *short, "--loss", "dkd", "-T", "2"])
    assert run_command() == 0
    assert "resnet8-dkd-T2-" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*words, *short, "--loss", "mlkd", "-T", "2"])
    assert run_command() == 2
    assert 'found 2, but the loss "mlkd" has none' in capsys.readouterr().err


@pytest.mark.slow
def test_a_compiled_student_learns_the_same(student) -> None:
    plain, compiled = student(), student("student.compile=true")
    assert epochs_of(plain)[-1]["loss"] == pytest.approx(epochs_of(compiled)[-1]["loss"], rel=1e-2)


class _Uncompiled(torch.nn.Module):
    """A compiled network of which one pass cannot be compiled."""

    def __init__(self, model: torch.nn.Module, of: str, failure: Callable[[], Exception]) -> None:
        super().__init__()
        self.model, self.of, self.failure = model, of, failure

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.of == "forward":
            raise self.failure()
        logits = self.model(images)
        logits.register_hook(self._fail)
        return logits

    def _fail(self, gradient: torch.Tensor) -> None:
        raise self.failure()


def _failures() -> dict[str, Callable[[], Exception]]:
    from torch._dynamo.exc import InternalTorchDynamoError
    from torch._inductor.exc import CppCompileError, InductorError

    return {
        "dynamo": lambda: InternalTorchDynamoError(""),
        "compiler": lambda: CppCompileError(["g++"], "no space left"),
        "inductor": lambda: InductorError(CppCompileError(["g++"], "no space left"), None),
        "other": lambda: RuntimeError("something else"),
    }


@pytest.mark.parametrize("of", ["forward", "backward"])
@pytest.mark.parametrize(
    ("failure", "said"),
    [("dynamo", "InternalTorchDynamoError"), ("compiler", "C++ compile error"), ("inductor", "CppCompileError: C++")],
)
def test_a_student_that_cannot_be_compiled(student, monkeypatch, of: str, failure: str, said: str) -> None:
    monkeypatch.setattr(torch, "compile", lambda model: _Uncompiled(model, of, _failures()[failure]))
    with pytest.raises(RunError) as caught:
        student("student.compile=true")
    assert caught.value.message.startswith(f"[student] compile: torch cannot compile resnet8: {said}")
    assert "student.compile=false" in caught.value.cure


@pytest.mark.parametrize("of", ["forward", "backward"])
def test_other_failures_of_a_compiled_student_stay_what_they_are(student, monkeypatch, of: str) -> None:
    monkeypatch.setattr(torch, "compile", lambda model: _Uncompiled(model, of, _failures()["other"]))
    with pytest.raises(RuntimeError, match=r"^something else$"):
        student("student.compile=true")


@pytest.mark.parametrize("of", ["forward", "backward"])
def test_ctrl_c_while_a_student_is_compiled_is_an_interruption(student, monkeypatch, of: str) -> None:
    def interrupted() -> Exception:
        signal.raise_signal(signal.SIGINT)  # the terminal sends it to the compiler, too, which ends by it
        return _failures()["inductor"]()

    monkeypatch.setattr(torch, "compile", lambda model: _Uncompiled(model, of, interrupted))
    with pytest.raises(Interrupted, match=r"student interrupted within step 1 of epoch 1, .*the same command goes on"):
        student("student.compile=true")


def test_one_soft_teacher_makes_the_mean_soft(tiny) -> None:
    recipe = tiny("teacher.labels.rule=onehot")
    for more, temperature in (((), 4.0), (("onehot",), 4.0), (("smoothing",), 1.0), (("imported", "class"), 1.0)):
        settled = settle_student(recipe, more, channels=1, image_size=8, classes=10)
        assert settled.recipe.student.loss.temperature == temperature

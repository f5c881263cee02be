"""A stage that was stopped anywhere ends with the same bits as one that was not."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distill.cli.entry import run as run_command
from distill.errors import BilevelError, StoreError, UserError
from distill.recipe.load import dump_recipe, override
from distill.report.runs import open_run
from distill.stages import teacher_task
from distill.stages.export import export_teacher
from distill.stages.pipeline import run_pipeline, run_teacher
from distill.stages.student import train_student
from distill.stages.teacher import train_teacher
from distill.store.atomic import sha256_of
from distill.store.tensors import read_tensors, write_tensors
from distill.training import loop
from distill.training.best import BestWeights
from distill.training.events import EpochDone, Event, ExportProgress, Notice, StageSkipped, StepDone
from distill.training.interrupt import Interrupted


def ignore(event: Event) -> None:
    pass


class StopAt:
    """A listener that presses Ctrl-C when a step, or an export's batch, is reached."""

    def __init__(self, stage: str, epoch: int, step: int) -> None:
        self.at = (stage, epoch, step)

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone) and (event.stage, event.epoch, event.step) == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        if isinstance(event, ExportProgress) and self.at[0] == "export" and event.done >= self.at[2]:
            os.kill(os.getpid(), signal.SIGINT)


def notices(run: Path) -> list[tuple[str, int, int, str]]:
    """Stage, epoch, step and message of each in a run's metrics.jsonl."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(e["stage"], e["epoch"], e["step"], e["message"]) for e in lines if e["event"] == "notice"]


def same(a: Path, b: Path) -> bool:
    left, right = read_tensors(a), read_tensors(b)
    return left.keys() == right.keys() and all(torch.equal(t, right[name]) for name, t in left.items())


@pytest.mark.parametrize(
    ("meta", "mean", "channels_last", "pulls"),
    [
        ("held-out", 0.5, "false", ()),
        ("next-batch", 0.0, "false", ()),
        ("next-batch", 0.5, "true", ()),
        ("held-out", 0.5, "true", ("answers=0.3", "ema_decay=0.9")),
        ("next-batch", 0.5, "false", ("posterior=0.3", "ema_decay=0.9")),
        ("held-out", 0.5, "false", ("posterior=0.3", "learn_confusions=true", "learn_temperature=true")),
        ("next-batch", 0.0, "false", ("posterior=0.3", "proximal=true", "repeats=3")),
        ("next-batch", 0.5, "false", ("posterior=0.3", "learn_confusions=true", "calibrated=true")),
    ],
)
@pytest.mark.parametrize(("epoch", "step"), [(0, 2), (1, 4), (2, 1)])
def test_an_interrupted_teacher_ends_with_the_same_bits(tiny, meta, mean, channels_last, pulls, epoch, step) -> None:
    labels = (
        f"teacher.labels.meta={meta}",
        f"teacher.labels.meta_gradient_mean={mean}",
        f"teacher.channels_last={channels_last}",
        f"teacher.labels.momentum={0 if 'proximal=true' in pulls else 0.5}",
        *(f"teacher.labels.pulls.{pull}" for pull in pulls),
    )
    whole = train_teacher(tiny("name=whole", *labels), ignore)
    recipe = tiny("name=stopped", *labels)
    with pytest.raises(Interrupted, match="the same command goes on"):
        train_teacher(recipe, StopAt("teacher", epoch, step))
    stopped = train_teacher(recipe, ignore)
    assert same(whole.folder / "model.safetensors", stopped.folder / "model.safetensors")
    assert same(whole.folder / "best.safetensors", stopped.folder / "best.safetensors")
    assert same(whole.folder / "labels/labels.safetensors", stopped.folder / "labels/labels.safetensors")
    metrics = [dict(run.record.stages["teacher"].metrics) for run in (whole, stopped)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-9)
    epochs = [line for line in (stopped.folder / "metrics.jsonl").read_text().splitlines() if '"epoch"' in line]
    assert sum('"event": "epoch"' in line or '"event":"epoch"' in line for line in epochs) == 3
    assert len(notices(whole.folder)) > 2
    assert notices(stopped.folder) == notices(whole.folder)


def test_float16_and_adams_rows_go_on_with_the_same_bits(tiny) -> None:
    settings = ("teacher.precision=float16", "teacher.labels.optimizer=adam", "teacher.labels.step=0.1")
    settings = (*settings, "student.precision=float16")
    whole = run_pipeline(tiny("name=whole", *settings), ignore)
    recipe = tiny("name=stopped", *settings)
    for at in (StopAt("teacher", 1, 2), StopAt("student", 1, 1)):
        with pytest.raises(Interrupted):
            run_pipeline(recipe, at)
    stopped = run_pipeline(recipe, ignore)
    for one, other in zip(whole, stopped, strict=True):
        assert same(one.folder / "model.safetensors", other.folder / "model.safetensors")
    assert same(whole[0].folder / "labels/labels.safetensors", stopped[0].folder / "labels/labels.safetensors")


def test_the_estimator_is_chosen_again_after_1_2_4_epochs(tiny) -> None:
    told: list[str] = []

    def listen(event: Event) -> None:
        match event:
            case EpochDone():
                told.append(f"epoch {event.epoch + 1}")
            case Notice() if "label gradient" in event.message:
                told.append(event.message.partition(":")[0].partition(" (")[0])

    train_teacher(tiny("teacher.epochs=5"), listen)
    asked = "label gradient by one-sided"
    expected = [asked, "epoch 1", asked, "epoch 2", asked, "epoch 3", "epoch 4", asked, "epoch 5"]
    assert told == expected


def test_a_choice_that_fails_later_leaves_the_estimator(tiny, monkeypatch) -> None:
    real, asked, told = teacher_task.choose_estimator, [], []

    def fails_later(*given):
        asked.append(given)
        if len(asked) > 1:
            raise BilevelError("no estimator passes")
        return real(*given)

    monkeypatch.setattr(teacher_task, "choose_estimator", fails_later)
    run = train_teacher(tiny(), lambda event: told.append(str(event)))
    assert run.record.stages["teacher"]
    assert len(asked) == 3
    assert sum("stays with one-sided" in line for line in told) == 2


def test_an_interrupted_student_ends_with_the_same_bits(tiny) -> None:
    recipe = tiny()
    teacher = run_teacher(recipe, ignore)
    with pytest.raises(Interrupted):
        train_student(teacher, recipe, StopAt("student", 1, 2))
    stopped = train_student(teacher, recipe, ignore)
    again = run_pipeline(tiny("name=again"), ignore)[1]
    assert same(stopped.folder / "model.safetensors", again.folder / "model.safetensors")


def test_an_interrupted_export_keeps_what_was_finished(tiny) -> None:
    recipe = tiny("export.batch_size=50")
    run = train_teacher(recipe, ignore)
    with pytest.raises(Interrupted):
        export_teacher(run, recipe, StopAt("export", 0, 350))
    kept = {p.name: p.stat().st_mtime_ns for p in (run.folder / "logits").glob("view*")}
    assert kept
    export_teacher(run, recipe, ignore)
    assert all((run.folder / "logits" / name).stat().st_mtime_ns == made for name, made in kept.items())
    other = run_teacher(tiny("name=other"), ignore)
    for path in sorted((other.folder / "logits").glob("view*")):
        assert same(path, run.folder / "logits" / path.name)


def test_a_killed_teacher_goes_on(tiny, tmp_path) -> None:
    """SIGKILL, from outside, while the command line is training."""
    recipe = tiny("teacher.epochs=6", "name=killed")
    path = tmp_path / "killed.toml"
    path.write_text(dump_recipe(recipe))
    command = [sys.executable, "-m", "distill", "teacher", str(path), "--no-export"]
    state = tmp_path / "killed/state/teacher.safetensors"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not state.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    resumed = train_teacher(recipe, ignore)
    whole = train_teacher(tiny("teacher.epochs=6", "name=whole"), ignore)
    assert same(whole.folder / "model.safetensors", resumed.folder / "model.safetensors")


def test_finished_stages_are_skipped(tiny) -> None:
    recipe = tiny()
    run_pipeline(recipe, ignore)
    seen: list[Event] = []
    run_pipeline(recipe, seen.append)
    assert [event.stage for event in seen if isinstance(event, StageSkipped)] == ["teacher", "export", "student"]
    assert not any(isinstance(event, EpochDone) for event in seen)


def test_a_missing_or_changed_file_is_made_again(tiny) -> None:
    recipe = tiny()
    teacher, _ = run_pipeline(recipe, ignore)
    (teacher.folder / "model.safetensors").unlink()
    seen: list[Event] = []
    again, _ = run_pipeline(recipe, seen.append)
    assert [event.stage for event in seen if isinstance(event, StageSkipped)] == ["export", "student"]
    assert again.record.stages["teacher"].files == teacher.record.stages["teacher"].files


def test_another_recipe_does_not_overwrite_a_run(tiny) -> None:
    train_teacher(tiny(), ignore)
    with pytest.raises(UserError, match=r"teacher.epochs: 3 -> 4"):
        train_teacher(tiny("teacher.epochs=4"), ignore)


def test_other_views_are_exported_anew_and_students_follow(tiny) -> None:
    recipe = tiny()
    run = run_teacher(recipe, ignore)
    export_teacher(run, tiny("views.count=2"), ignore)
    assert len(list((run.folder / "logits").glob("view*"))) == 2 * 3
    with pytest.raises(UserError, match=r"other views(.|\n)*--set views.count=3"):
        train_student(run, recipe, ignore)
    again = open_run(run.folder)
    train_student(again, again.recipe, ignore)


def test_other_views_after_an_interrupted_export(tiny) -> None:
    run = train_teacher(tiny("export.batch_size=50"), ignore)
    with pytest.raises(Interrupted):
        export_teacher(run, tiny("export.batch_size=50"), StopAt("export", 0, 350))
    export_teacher(run, tiny("views.count=2"), ignore)
    assert len(list((run.folder / "logits").glob("view*"))) == 2 * 3


def test_a_stop_at_the_very_end_is_not_lost(tiny) -> None:
    recipe = tiny()
    for stage, stop in (("teacher", StopAt("teacher", 2, 4)), ("export", StopAt("export", 0, 780))):
        with pytest.raises(Interrupted, match=stage):
            run_pipeline(recipe, stop)
    run_pipeline(recipe, ignore)


def test_a_failed_first_try_does_not_block_the_name(tiny) -> None:
    for wrong in ("data.train=1", "teacher.model=nosuch", "teacher.optimizer.lr=1e30"):
        with pytest.raises(UserError):
            train_teacher(tiny(wrong), ignore)
    train_teacher(tiny(), ignore)


def test_a_teacher_without_its_record_is_not_overwritten(tiny) -> None:
    run = train_teacher(tiny(), ignore)
    weights = (run.folder / "model.safetensors").read_bytes()
    (run.folder / "run.json").unlink()
    with pytest.raises(UserError, match=r"holds a teacher, but no run\.json"):
        train_teacher(tiny("teacher.epochs=1"), ignore)
    assert (run.folder / "model.safetensors").read_bytes() == weights


def test_the_cure_for_a_copied_run_mends_the_copy(tiny, tmp_path, monkeypatch) -> None:
    """Its recipe.toml has the name of the run that it was copied from, which has nothing to be mended."""
    run = train_teacher(tiny("teacher.epochs=1"), ignore)
    copied = open_run(Path(shutil.copytree(run.folder, tmp_path / "2026")))
    weights = copied.folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(b"torn")
    with pytest.raises(UserError, match="sha256 differs") as found:
        export_teacher(copied, copied.recipe, ignore)
    weights.unlink()
    command = found.value.cure.split("`")[1]
    monkeypatch.setattr(sys, "argv", [*shlex.split(command), "--no-export", "--quiet"])
    assert run_command() == 0
    assert weights.read_bytes() == content
    copied.forget("teacher")
    with pytest.raises(UserError, match="is not finished") as found:
        export_teacher(copied, copied.recipe, ignore)
    assert f"`{command}`" in found.value.cure


def test_a_skip_keeps_the_record(tiny) -> None:
    recipe = tiny()
    run_pipeline(recipe, ignore)
    record = (Path(recipe.checkpoints) / "tiny/run.json").read_bytes()
    run_pipeline(tiny("student.epochs=1"), ignore)
    assert (Path(recipe.checkpoints) / "tiny/run.json").read_bytes() == record


def test_a_skipped_teacher_has_the_student_that_its_recipe_asks_for_by_now(tiny) -> None:
    """`distill teacher R; distill student --teacher RUN` after a change of [student]."""
    run_teacher(tiny(), ignore)
    again = run_teacher(tiny("student.model=resnet14", "student.epochs=1"), ignore)
    assert open_run(again.folder).recipe.student.model == "resnet14"
    student = train_student(again, open_run(again.folder).recipe, ignore)
    assert student.recipe.student.model == "resnet14"
    # What the store was made by stays until an export makes another.
    alone = run_teacher(tiny("export.format=int8", "student.epochs=3"), ignore, export=False)
    assert (alone.recipe.export.format, alone.recipe.student.epochs) == ("float16", 3)
    exported = run_teacher(tiny("export.format=int8"), ignore)
    assert open_run(exported.folder).recipe.export.format == "int8"


def test_a_student_s_recipe_names_the_store_that_it_had(tiny) -> None:
    teacher = run_teacher(tiny("export.features=true"), ignore)
    asked = override(teacher.recipe, ["export.format=int8", "export.features=false", "student.epochs=1"])
    export = train_student(teacher, asked, ignore).recipe.export
    assert (export.format, export.features, export.maps, export.k) == ("float16", True, False, None)


def test_an_edited_recipe_in_the_folder_overwrites_nothing(tiny) -> None:
    run = train_teacher(tiny(), ignore)
    (run.folder / "recipe.toml").write_text(dump_recipe(tiny("teacher.epochs=2")))
    with pytest.raises(UserError, match="another recipe"):
        train_teacher(tiny("teacher.epochs=2"), ignore)


def test_changed_labels_are_another_teacher(tiny, tmp_path) -> None:
    noise = (
        "data.noise.kind=file",
        "data.noise.rate=0",
        "data.noise.redraw=all",
        f'data.noise.file="{tmp_path}/n.csv"',
    )
    (tmp_path / "n.csv").write_text("index,label\n" + "".join(f"{i},3\n" for i in range(300)))
    run = run_teacher(tiny(*noise), ignore)
    (tmp_path / "n.csv").write_text("index,label\n" + "".join(f"{i},4\n" for i in range(300)))
    with pytest.raises(UserError, match="given labels were changed"):
        train_teacher(tiny(*noise), ignore)
    with pytest.raises(UserError, match="other given labels"):
        export_teacher(run, tiny(*noise), ignore)


def test_a_failing_export_keeps_the_store(tiny) -> None:
    recipe = tiny()
    run = run_teacher(recipe, ignore)
    with pytest.raises(UserError):
        export_teacher(run, tiny("data.source=folder", "data.root=/nowhere", "views.count=2"), ignore)
    assert "export" in open_run(run.folder).record.stages


def test_a_damaged_state_is_named_and_nothing_is_lost(tiny) -> None:
    recipe = tiny()
    with pytest.raises(Interrupted):
        train_teacher(recipe, StopAt("teacher", 1, 1))
    state = Path(recipe.checkpoints) / "tiny/state/teacher.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"state/teacher\.safetensors"):
        train_teacher(recipe, ignore)
    state.unlink()
    train_teacher(recipe, ignore)


@pytest.mark.parametrize("select", ["best", "last"])
def test_other_best_weights_than_training_wrote_are_refused(tiny, select: str) -> None:
    """Zeros of the right shapes, or none: they would be exported, or reported, as the best epoch's."""
    recipe = tiny("teacher.epochs=3", f"teacher.select={select}")
    with pytest.raises(Interrupted):
        train_teacher(recipe, StopAt("teacher", 1, 1))
    best = Path(recipe.checkpoints) / "tiny/best.safetensors"
    whole = best.read_bytes()
    write_tensors(best, {name: torch.zeros_like(value) for name, value in read_tensors(best).items()})
    with pytest.raises(StoreError, match="not the weights that training wrote there"):
        train_teacher(recipe, ignore)
    best.unlink()
    with pytest.raises(StoreError, match="missing, though training wrote it") as caught:
        train_teacher(recipe, ignore)
    assert caught.value.cure.endswith("state/teacher.safetensors to start this stage again.")
    best.write_bytes(whole)
    resumed = train_teacher(recipe, ignore)
    undisturbed = train_teacher(tiny("teacher.epochs=3", f"teacher.select={select}", "name=whole"), ignore)
    for name in ("model.safetensors", "best.safetensors"):
        assert same(undisturbed.folder / name, resumed.folder / name)


@pytest.mark.parametrize("moment", ["before the state", "after the state"])
def test_a_kill_around_the_state_leaves_the_best_weights_that_it_names(tiny, monkeypatch, moment: str) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    recipe = tiny("teacher.epochs=3", "teacher.select=best")
    with pytest.raises(Interrupted):
        train_teacher(recipe, StopAt("teacher", 1, 1))
    with monkeypatch.context() as patched:
        patched.setattr(*((loop, "save") if moment == "before the state" else (BestWeights, "keep")), killed)
        patched.setattr(loop, "_better", lambda scores, best: True)
        with pytest.raises(Killed):
            train_teacher(recipe, ignore)
    assert list((Path(recipe.checkpoints) / "tiny/state").glob("teacher-best*"))
    resumed = train_teacher(recipe, ignore)
    assert resumed.record.stages["teacher"].files["best.safetensors"] == sha256_of(resumed.folder / "best.safetensors")
    assert not list((resumed.folder / "state").iterdir())


@pytest.mark.parametrize("epochs", [0, 1])
def test_an_earlier_trainings_best_weights_are_not_recorded_as_this_ones(tiny, epochs: int) -> None:
    """As a killed training leaves them, whose state was deleted for another recipe of the same name."""
    recipe = tiny("data.validation=0", f"teacher.epochs={epochs}", "teacher.labels.rule=onehot")
    folder = Path(recipe.checkpoints) / recipe.name
    leftovers = [folder / "best.safetensors", folder / "state/teacher-best.safetensors"]
    for path in leftovers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"another's")
    run = train_teacher(recipe, ignore)
    assert "best.safetensors" not in run.record.stages["teacher"].files
    assert not any(path.exists() for path in leftovers)


def test_a_state_without_a_best_epoch_leaves_no_earlier_best_weights(tiny) -> None:
    recipe = tiny("data.validation=0", "teacher.epochs=1")
    with pytest.raises(Interrupted):
        train_teacher(recipe, StopAt("teacher", 0, 1))
    (Path(recipe.checkpoints) / recipe.name / "best.safetensors").write_bytes(b"another's")
    assert "best.safetensors" not in train_teacher(recipe, ignore).record.stages["teacher"].files


def test_two_processes_do_not_share_a_run(tiny) -> None:
    from distill.report.lock import locked

    recipe = tiny()
    with locked(Path(recipe.checkpoints) / recipe.name), pytest.raises(UserError, match="another process"):
        train_teacher(recipe, ignore)

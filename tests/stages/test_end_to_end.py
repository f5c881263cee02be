"""From a recipe to a student that timm loads, through the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from distill.data.loader import open_data, ordered_batches
from distill.errors import StoreError
from distill.recipe.load import dump_recipe, load_recipe, override, parse_recipe
from distill.report.runs import open_run
from distill.stages.check import check_plan
from distill.stages.pipeline import run_pipeline
from distill.stages.teacher import train_teacher
from distill.stages.verify import verify_path
from distill.store.labels import read_labels
from distill.store.logits import LogitStore
from distill.training.evaluate import evaluate
from distill.training.events import Event, Notice

ROOT = Path(__file__).resolve().parents[2]


def ignore(event: Event) -> None:
    pass


def distill(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "distill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=240)


def test_the_demo_shrunk(tmp_path: Path) -> None:
    """`make demo`'s command on `make demo`'s recipe, with fewer epochs."""
    short = ["--set", "teacher.epochs=5", "--set", "teacher.labels.average_epochs=2", "--set", "student.epochs=2"]
    done = distill("compare", str(ROOT / "recipes/digits.toml"), *short, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("onehot", "smoothing", "instance", "labels", "suspected label errors", "run folder", "next:"):
        assert word in done.stdout
    folder = tmp_path / "checkpoints/digits-compare"
    assert (folder / "instance-s0/figures/suspected_errors.png").read_bytes().startswith(b"\x89PNG")
    assert "| instance | teacher |" in (folder / "table.md").read_text()
    again = distill("compare", str(ROOT / "recipes/digits.toml"), *short, "--json", "--quiet", cwd=tmp_path)
    arms = json.loads(again.stdout)["arms"]
    assert [arm["rule"] for arm in arms] == ["onehot", "smoothing", "instance"]
    assert arms[2]["teacher"]["given_right"] == pytest.approx(0.7, abs=0.001)


def test_every_command_in_a_row(tiny, tmp_path: Path) -> None:
    recipe = tmp_path / "a recipe.toml"
    recipe.write_text(dump_recipe(tiny("checkpoints=checkpoints")))
    for arguments in (
        ["check", str(recipe)],
        ["teacher", str(recipe), "--no-export"],
        ["export", "--teacher", "checkpoints/tiny"],
        ["student", "--teacher", "tiny", "--model", "resnet14", "-T", "2", "--set", "student.epochs=1"],
        ["run", str(recipe), "--quiet"],
        ["verify", "checkpoints/tiny"],
        ["list", "data"],
    ):
        done = distill(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert "\x1b" not in done.stdout  # plain lines: the output is no terminal
    assert len(list((tmp_path / "checkpoints/tiny/students").iterdir())) == 2


@pytest.mark.parametrize("model", ["resnet8", "test_vit", "test_efficientnet", "resnet10t"])
def test_a_student_comes_back_through_timm_with_the_same_logits(tiny, model: str) -> None:
    recipe = tiny(f"student.model={model}", "teacher.epochs=1", "student.epochs=1", "student.optimizer.lr=0.01")
    _, student = run_pipeline(recipe, ignore)
    loaded = timm.create_model(f"local-dir:{student.folder}", pretrained=True)
    data = open_data(recipe)
    scores = evaluate(loaded, ordered_batches(data, data.splits.test, batch_size=64, device="cpu"), data.labels.true)
    metrics = student.record.stages["student"].metrics
    assert scores.accuracy == pytest.approx(metrics["test_accuracy"], abs=1e-12)
    assert scores.nll == pytest.approx(metrics["test_nll"], rel=1e-6)


@pytest.mark.parametrize("model", ["test_vit", "test_convnext", "resnet10t"])
@pytest.mark.parametrize("meta", ["held-out", "next-batch"])
def test_other_families_learn_labels(tiny, model: str, meta: str) -> None:
    overrides = (
        f"teacher.model={model}",
        f"teacher.labels.meta={meta}",
        "teacher.epochs=2",
        "teacher.optimizer.lr=0.02",
    )
    teacher, _ = run_pipeline(tiny(*overrides, "student.epochs=1"), ignore)
    labels = read_labels(teacher.folder / "labels")
    assert labels.touched.double().mean() > 0.9  # an epoch drops its last partial batch
    assert (labels.labels - labels.trajectory[1].float()).abs().max() > 1e-4


def test_the_store_holds_the_teacher_s_logits_of_exactly_these_views(tiny) -> None:
    recipe = tiny("export.format=float32")
    teacher, _ = run_pipeline(recipe, ignore)
    from distill.stages.finished import load_teacher

    data = open_data(recipe)
    store = LogitStore.open(teacher.folder / "logits")
    model = load_teacher(recipe, data, teacher.folder / "model.safetensors", torch.device("cpu"))
    rows = store.indices[torch.randperm(store.indices.numel())[:40]]
    for view in range(3):
        batch = next(ordered_batches(data, rows, batch_size=40, device="cpu", view=view, views=recipe.views, seed=0))
        with torch.no_grad():
            expected = model(batch.images)
        torch.testing.assert_close(store.rows(rows, batch.view), expected, rtol=1e-4, atol=1e-5)


def test_select_best_keeps_the_best_weights(tiny) -> None:
    recipe = tiny("teacher.select=best", "student.select=best")
    for run in run_pipeline(recipe, ignore):
        model, best = ((run.folder / name).read_bytes() for name in ("model.safetensors", "best.safetensors"))
        metrics = next(iter(run.record.stages.values())).metrics
        assert (run.folder / "last.safetensors").exists()
        assert metrics["best_validation_accuracy"] >= metrics["validation_accuracy"]
        assert len(best) <= len(model)  # the same tensors; timm's file says a little more
    assert verify_path(run.folder.parents[1]) > 10


def test_verify_names_a_flipped_byte(tiny) -> None:
    teacher, student = run_pipeline(tiny(), ignore)
    for path in (teacher.folder / "model.safetensors", student.folder / "model.safetensors"):
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"model\.safetensors"):
            verify_path(teacher.folder)
        content[-3] ^= 1
        path.write_bytes(content)
    assert verify_path(teacher.folder) > 10


def test_check_finds_every_problem_at_once(tiny) -> None:
    recipe = tiny(
        "device=cuda:7",
        "data.train=5000",
        "teacher.model=resnt8",
        "student.optimizer.name=adamm",
        "teacher.labels.warmup_epochs=9",
    )
    problems = " ".join(check_plan(recipe, "tiny.toml").problems)
    for word in ("device", "5000", "resnt8", "adamm", "warmup_epochs"):
        assert word in problems


def test_check_notes_what_labels_have_no_use_for(tiny) -> None:
    pencil = ("teacher.labels.rule=pencil", "teacher.labels.settings=robust")
    plan = check_plan(tiny(*pencil, "compare.teachers=onehot,smoothing,instance"), "tiny.toml")  # the field's default
    (note,) = (note for note in plan.notes if "has no use" in note)
    assert {"freeze_patience,", "pulls,"} <= set(note.replace(":", ",").split())
    assert "warmup_epochs" not in note
    named = check_plan(tiny(*pencil, "compare.teachers=class,pencil"), "tiny.toml").notes
    assert not any("has no use" in note for note in named)
    few = check_plan(tiny("teacher.labels.rule=instance", "teacher.labels.meta=held-out", "data.meta=2"), "tiny.toml")
    assert any("found 2 images to judge the labels, and 8 of 10 classes have none" in note for note in few.notes)


def test_a_recipe_that_compares_nothing_is_not_checked_for_it() -> None:
    """Adam without a warm-up fits one-hot labels; not the learned ones of a comparison that nobody asked for."""
    fields = ("data.source=digits", "teacher.model=resnet8", "student.model=resnet8", "teacher.labels.rule=onehot")
    recipe = override(
        parse_recipe("", "r.toml"), [*fields, "teacher.optimizer.name=adamw", "teacher.optimizer.lr=0.001"]
    )
    assert check_plan(recipe, "r.toml").problems == []
    asked = override(recipe, ["compare.seeds=0,1"])
    assert any("warmup_epochs" in line for line in check_plan(asked, "r.toml").problems)


def test_check_notes_half_precision_that_is_emulated(tiny, monkeypatch) -> None:
    monkeypatch.setattr("distill.training.device._has_arithmetic", lambda device, precision: False)

    def notes(*settings: str) -> list[str]:
        return [note for note in check_plan(tiny("device=cpu", *settings), "tiny.toml").notes if "emulated" in note]

    assert notes() == []
    (found,) = notes("student.precision=bfloat16")
    assert found.startswith("[student] precision")
    assert len(notes("student.precision=bfloat16", "teacher.precision=float16")) == 2


def test_classes_that_a_part_has_no_image_of_are_noted(tiny) -> None:
    few = tiny("teacher.labels.rule=instance", "teacher.labels.meta=held-out", "data.meta=2", "data.test=4")
    notes = [note for note in check_plan(few, "tiny.toml").notes if "classes have no" in note]
    told_of_test = r"\[data\]: [6-9] of 10 classes have no test image; its numbers are of the others"
    assert any(re.fullmatch(told_of_test, note) for note in notes)
    told: list[Event] = []
    train_teacher(few, told.append)
    said = [event.message for event in told if isinstance(event, Notice)]
    assert {f"note: {note}" for note in notes} <= set(said)
    assert any("found 2 images to judge the labels, and 8 of 10 classes have none" in message for message in said)


def test_run_json_carries_the_inputs(tiny) -> None:
    teacher, student = run_pipeline(tiny(), ignore)
    for run in (teacher, student):
        for stage in open_run(run.folder).record.stages.values():
            assert stage.commit
            assert torch.__version__.startswith(stage.versions["torch"])
            assert "cpu" in stage.machine["device"]
        assert load_recipe(run.folder / "recipe.toml") == run.recipe
    assert student.record.teacher == teacher.record.stages["teacher"].digest

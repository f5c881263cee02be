"""When labels move: not before warm-up, not once frozen, by how much in between; and who is trained on meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from distill.data.loader import Batch, open_data
from distill.errors import RecipeError
from distill.labels.temperature import TEMPERATURES, UNHEARD
from distill.labels.watch import Watch
from distill.recipe.checks import check_recipe
from distill.stages import teacher_task
from distill.stages.teacher import train_teacher
from distill.stages.teacher_task import TeacherTask
from distill.store.checkpoint import load_state, save_state
from distill.store.labels import LearnedLabels, read_labels
from distill.training.interrupt import Interrupted
from tests.stages.test_resume import StopAt, ignore, same

JOINED = ("teacher.labels.freeze_epochs=2", "teacher.labels.meta_joins=frozen")


def labels_of(recipe) -> LearnedLabels:
    return read_labels(train_teacher(recipe, ignore).folder / "labels")


def moved(labels: LearnedLabels, epoch: int, other: int) -> float:
    """Between the ends of two epochs, the largest change; half precision keeps .0005."""
    return float((labels.trajectory[epoch].float() - labels.trajectory[other].float()).abs().max())


@pytest.mark.parametrize("meta", ["held-out", "next-batch"])
@pytest.mark.parametrize("rule", ["class", "instance", "class+instance"])
def test_labels_stay_in_warm_up_and_once_frozen(tiny, rule: str, meta: str) -> None:
    labels = labels_of(
        tiny(
            f"teacher.labels.rule={rule}",
            f"teacher.labels.meta={meta}",
            "teacher.labels.warmup_epochs=1",
            "teacher.labels.freeze_epochs=1",
        )
    )
    start = torch.full_like(labels.labels, 0.1 / 9).scatter_(1, labels.given.unsqueeze(1), 0.9)
    assert (labels.trajectory[1].float() - start).abs().max() < 1e-3
    assert moved(labels, 1, 2) > 2e-3
    assert moved(labels, 2, 3) == 0
    assert labels.touched.any()


def test_a_step_that_falls_moves_less_and_less(tiny) -> None:
    constant, falling = (
        labels_of(tiny(f"name={s}", f"teacher.labels.step_schedule={s}")) for s in ("constant", "linear")
    )
    ends = [float((labels.labels - labels.trajectory[2].float()).abs().mean()) for labels in (falling, constant)]
    assert ends[0] < 0.5 * ends[1]


def test_the_judges_loss_is_the_mean_of_the_steps_that_judge(tiny) -> None:
    settings = ("teacher.labels.step=0", "teacher.epochs=2", "teacher.labels.every=2")  # training is the same
    often, seldom = (
        train_teacher(tiny(f"name=every{k}", *settings[:2], f"teacher.labels.every={k}"), ignore) for k in (1, 2)
    )
    losses = [run.metrics("teacher")["meta_loss"] for run in (often, seldom)]
    assert losses[1] == pytest.approx(losses[0], rel=0.25)
    recipe = tiny("name=stopped", *settings)
    with pytest.raises(Interrupted):
        train_teacher(recipe, StopAt("teacher", 1, 1))
    assert train_teacher(recipe, ignore).metrics("teacher")["meta_loss"] == pytest.approx(losses[1], rel=1e-9)


def test_a_state_that_does_not_count_losses_is_gone_on_with(tiny) -> None:
    whole = train_teacher(tiny("name=whole", "teacher.epochs=2"), ignore).metrics("teacher")
    recipe = tiny("name=older", "teacher.epochs=2")
    with pytest.raises(Interrupted):
        train_teacher(recipe, StopAt("teacher", 1, 2))
    path = Path(recipe.checkpoints) / "older" / "state" / "teacher.safetensors"
    state = load_state(path)
    del state["progress"]["told"]
    save_state(path, state)
    again = train_teacher(recipe, ignore).metrics("teacher")
    assert [again[name] for name in ("loss", "meta_loss")] == pytest.approx([whole["loss"], whole["meta_loss"]])


@pytest.mark.parametrize("told", [False, True])
def test_pencil_may_be_told_which_labels_are_right(tiny, told: bool) -> None:
    recipe = tiny("teacher.labels.rule=pencil", f"teacher.labels.pencil.keep_meta={str(told).lower()}")
    labels, meta = labels_of(recipe), open_data(recipe).splits.meta
    known = torch.isin(labels.indices, meta)
    assert known.sum() == len(meta)
    start = torch.full_like(labels.labels, 0.001 / 9).scatter_(1, labels.given.unsqueeze(1), 0.999)
    change = (labels.labels - start).abs().amax(1)
    assert (change[known].max() < 1e-5) == told
    assert change[~known].max() > 1e-3


def test_meta_images_join_when_labels_are_frozen(tiny) -> None:
    recipe = tiny(*JOINED)
    data = open_data(recipe)
    task = TeacherTask(recipe, data, torch.device("cpu"), ignore)
    meta, seen = set(data.splits.meta.tolist()), []
    for epoch in range(3):
        batches = list(task.batches(epoch, 0))
        assert len(batches) == task.steps
        seen.append({index for batch in batches for index in batch.indices.tolist()})
        assert [b.indices.tolist() for b in task.batches(epoch, 1)] == [b.indices.tolist() for b in batches[1:]]
    assert not seen[0] & meta
    assert seen[1] & meta
    assert seen[1] != seen[2]
    assert len(seen[1]) == len(seen[0])


def test_meta_images_join_from_the_start(tiny) -> None:
    recipe = tiny("teacher.labels.meta_joins=always")
    data = open_data(recipe)
    task = TeacherTask(recipe, data, torch.device("cpu"), ignore)
    seen = [{index for batch in task.batches(epoch, 0) for index in batch.indices.tolist()} for epoch in range(2)]
    assert all(each & set(data.splits.meta.tolist()) for each in seen)
    assert len(seen[0]) == len(seen[1]) == data.splits.train.numel() // task.batch_size * task.batch_size


KNOWN = {
    "instance": ("teacher.labels.rule=instance", "teacher.labels.meta_joins=always"),
    "frozen": ("teacher.labels.rule=instance", *JOINED),
    "projected": (
        "teacher.labels.rule=instance",
        "teacher.labels.meta_joins=always",
        "teacher.labels.parametrisation=projected",
    ),
    "class+instance": ("teacher.labels.rule=class+instance", "teacher.labels.meta_joins=always"),
    "pencil": ("teacher.labels.rule=pencil", "teacher.labels.pencil.keep_meta=true"),
}


@pytest.mark.parametrize("fields", KNOWN.values(), ids=KNOWN)
def test_images_that_are_known_to_be_right_have_a_mass_of_their_own(tiny, fields: tuple[str, ...]) -> None:
    recipe = tiny(*fields, "teacher.labels.known_mass=0.98")
    labels, meta = labels_of(recipe), open_data(recipe).splits.meta
    known = torch.isin(labels.indices, meta)
    assert known.sum() == len(meta)
    wanted = torch.full_like(labels.labels, 0.02 / 9).scatter_(1, labels.given.unsqueeze(1), 0.98)
    assert (labels.labels - wanted).abs().amax(1)[known].max() < 1e-6
    assert (labels.labels - wanted).abs().amax(1)[~known].median() > 1e-3


@pytest.mark.parametrize("joined", [JOINED, ("teacher.labels.meta_joins=always",)], ids=["frozen", "always"])
def test_meta_images_that_joined_have_labels_that_never_moved(tiny, joined: tuple[str, ...]) -> None:
    recipe = tiny(*joined)
    labels = labels_of(recipe)
    data = open_data(recipe)
    assert torch.equal(labels.indices, data.splits.teachable)
    of_meta = torch.isin(labels.indices, data.splits.meta)
    assert joined != JOINED or not labels.touched[of_meta].any()
    torch.testing.assert_close(labels.labels[of_meta].amax(-1), torch.full((int(of_meta.sum()),), 0.9))
    assert labels.touched[~of_meta].all() or joined != JOINED


def test_a_run_whose_meta_images_join_goes_on_with_the_same_bits(tiny) -> None:
    settings = (*JOINED, "teacher.labels.step_schedule=cosine", "teacher.labels.pulls.answers=0.05")
    settings = (*settings, "teacher.labels.rule=class+instance", "teacher.labels.optimizer=normalised")
    settings = (*settings, "teacher.labels.step=0.2", "teacher.labels.prior_step=0.1", "teacher.labels.meta_loss_q=0.7")
    whole = train_teacher(tiny("name=whole", *settings), ignore)
    for at in ((0, 2), (2, 1)):
        recipe = tiny(f"name=stopped{at[0]}", *settings)
        with pytest.raises(Interrupted):
            train_teacher(recipe, StopAt("teacher", *at))
        stopped = train_teacher(recipe, ignore)
        for name in ("model.safetensors", "labels/labels.safetensors"):
            assert same(whole.folder / name, stopped.folder / name)


def test_joining_asks_for_held_out_images_and_frozen_labels(tiny) -> None:
    for change in ("teacher.labels.meta=next-batch", "teacher.labels.freeze_epochs=0"):
        recipe = tiny(*JOINED, change)
        with pytest.raises(RecipeError, match="meta_joins: found"):
            check_recipe(recipe, "tiny.toml")


def test_labels_that_run_away_are_told_of_once(tiny) -> None:
    run = train_teacher(tiny("teacher.labels.step=20000", "teacher.labels.optimizer=normalised"), ignore)
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    told = [line["message"] for line in lines if line["event"] == "notice" and line["message"].startswith("labels ")]
    assert any("labels run away" in message for message in told)
    assert len(told) == len(set(told))


PATIENT = ("teacher.labels.rule=instance", "teacher.labels.freeze_patience=1", "teacher.epochs=6")
PULLED = ("teacher.labels.pulls.answers=3", "teacher.labels.step=3", "teacher.labels.meta=next-batch")


def patient(make, *more: str):
    """A recipe whose labels move early and settle before the end."""
    return make(*PATIENT, *PULLED, *more)


def told(run) -> list[int]:
    """The epochs, counted from 1, after which labels were said to have settled."""
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    return [line["epoch"] + 1 for line in lines if line["event"] == "notice" and "have settled" in line["message"]]


def test_labels_that_have_settled_stay(tiny) -> None:
    run = train_teacher(patient(tiny), ignore)
    (settled,) = told(run)
    shares, entropies = (
        [run.epochs("teacher")[epoch][name] for epoch in range(6)] for name in ("labels_moved", "label_entropy")
    )
    assert 1 < settled < 6
    assert shares[settled - 1] <= max(shares[: settled - 1])  # no more than before: a patience of one epoch is over
    assert shares[: settled - 1] == sorted(set(shares[: settled - 1]))
    assert len(set(entropies[:settled])) == settled
    assert set(entropies[settled:]) == {entropies[settled - 1]}


def test_labels_that_settle_where_they_have_collapsed_are_said_to(tiny, monkeypatch) -> None:
    monkeypatch.setattr(Watch, "collapsed", lambda self, metrics: metrics["labels_moved"] > 0)
    run = train_teacher(patient(tiny), ignore)
    assert told(run)
    assert "they stay, collapsed as they are" in (run.folder / "metrics.jsonl").read_text()


def test_how_sure_answers_may_be_stands_in_every_epochs_line(tiny) -> None:
    pulls = ("teacher.labels.pulls.posterior=1", "teacher.labels.pulls.learn_temperature=true")
    run = train_teacher(patient(tiny, *pulls), ignore)
    shown = [epoch["answers_temperature"] for epoch in run.epochs("teacher").values()]
    assert len(shown) == 6
    assert all(min(abs(t - known) for known in TEMPERATURES) < 1e-6 for t in shown)
    plain = train_teacher(patient(tiny, "name=plain"), ignore)
    assert "answers_temperature" not in plain.epochs("teacher")[0]


@pytest.mark.parametrize(("shift", "temperature"), [(0, 1.0), (1, UNHEARD)])
def test_answers_are_believed_as_far_as_they_are_right_on_validation(tiny, monkeypatch, shift, temperature) -> None:
    """What is asked after each epoch is validation, by its given labels."""
    asked = []

    def answered(model: nn.Module, batches: Iterable[Batch], targets: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(torch.cat([batch.rows for batch in batches]))
        given = targets[asked[-1]]
        return 9.0 * nn.functional.one_hot((given + shift) % 10, 10), given

    monkeypatch.setattr(teacher_task, "answered", answered)
    pulls = ("answers=0", "posterior=1", "calibrated=true")
    recipe = patient(tiny, "teacher.labels.freeze_patience=0", *(f"teacher.labels.pulls.{pull}" for pull in pulls))
    run = train_teacher(recipe, ignore)
    shown = [epoch["answers_temperature"] for epoch in run.epochs("teacher").values()]
    assert shown == [temperature] * 6
    data = open_data(recipe)
    assert len(asked) == 6
    assert all(torch.equal(rows, data.splits.validation) for rows in asked)
    assert "answers are taken at a temperature" not in (run.folder / "metrics.jsonl").read_text()


def test_labels_without_patience_move_to_the_end(tiny) -> None:
    run = train_teacher(patient(tiny, "teacher.labels.freeze_patience=0"), ignore)
    assert not told(run)
    assert len({epoch["label_entropy"] for epoch in run.epochs("teacher").values()}) == 6


def test_a_run_whose_labels_settle_goes_on_with_the_same_bits(tiny) -> None:
    whole = train_teacher(patient(tiny, "name=whole"), ignore)
    (settled,) = told(whole)
    for at in ((settled - 1, 1), (settled, 1)):
        recipe = patient(tiny, f"name=stopped{at[0]}")
        with pytest.raises(Interrupted):
            train_teacher(recipe, StopAt("teacher", *at))
        stopped = train_teacher(recipe, ignore)
        assert told(stopped) == [settled]
        for name in ("model.safetensors", "labels/labels.safetensors"):
            assert same(whole.folder / name, stopped.folder / name)


def test_what_is_exported_does_not_decide_whether_labels_have_settled(tiny) -> None:
    own, mean = (
        train_teacher(patient(tiny, f"teacher.labels.average_epochs={n}", f"name=n{n}"), ignore) for n in (1, 6)
    )
    assert told(own) == told(mean)
    assert same(own.folder / "model.safetensors", mean.folder / "model.safetensors")
    assert not same(own.folder / "labels/labels.safetensors", mean.folder / "labels/labels.safetensors")


def test_meta_images_join_when_labels_have_settled(tiny) -> None:
    recipe = tiny(*PATIENT, *PULLED[:2], "teacher.labels.meta_joins=frozen", "teacher.labels.freeze_epochs=0")
    check_recipe(recipe, "tiny.toml")
    task = TeacherTask(recipe, open_data(recipe), torch.device("cpu"), ignore)
    meta = set(task.data.splits.meta.tolist())
    before = {index for batch in task.batches(1, 0) for index in batch.indices.tolist()}
    task._settled.end_epoch(0.2)
    assert task._settled.end_epoch(0.1)
    after = {index for batch in task.batches(1, 0) for index in batch.indices.tolist()}
    assert not before & meta
    assert after & meta

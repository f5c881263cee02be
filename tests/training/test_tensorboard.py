"""Curves for TensorBoard, read back from the event files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import pytest

from distill.errors import RunError, StoreError
from distill.training import tensorboard
from distill.training.events import EpochDone, Listener, Notice, StageDone, StageSkipped, StageStarted, StepDone
from distill.training.tensorboard import tensorboard_listener

STEPS = 4
Curves: TypeAlias = dict[str, list[tuple[int, float]]]

needs_tensorboard = pytest.mark.skipif(
    tensorboard.find_spec("tensorboard") is None, reason="the extra `tensorboard` is not installed"
)


def read(run: Path) -> Curves:
    """Tag -> (step, value) as TensorBoard shows them: what was purged is not there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def train(
    listener: Listener,
    run: Path,
    stage: str = "student",
    *,
    first: tuple[int, int] = (0, 0),
    last: tuple[int, int] = (3, 0),
    offset: float = 0.0,
) -> None:
    """What a stage tells of the steps between two (epoch, step); losses and metrics are step and epoch, exactly."""
    listener(StageStarted(stage, str(run), 3, STEPS, *first))
    for number in range(first[0] * STEPS + first[1], last[0] * STEPS + last[1]):
        epoch, step = divmod(number, STEPS)
        shown = {"loss": offset + number + 1.0, "soft": 0.5} if step % 2 else {}
        listener(StepDone(stage, epoch, step + 1, 64, shown))
        if step + 1 == STEPS:
            metrics = {"loss": 1.0, "lr": 0.25, "epoch": epoch + 1.0, "test_accuracy": offset + epoch}
            listener(EpochDone(stage, epoch, 3, 1.5, metrics | {"validation_nll": 2.0, "labels_right": 0.75}))


def steps(curve: Sequence[tuple[int, float]]) -> list[int]:
    return [step for step, _ in curve]


@needs_tensorboard
def test_tags_and_axis(tmp_path: Path) -> None:
    with tensorboard_listener() as listener:
        listener(Notice("before anything"))
        listener(StageSkipped("teacher", str(tmp_path), "on disk"))
        train(listener, tmp_path)
        listener(StageDone("student", str(tmp_path), 1.0, {}))
        assert steps(read(tmp_path)["lr"]) == [4, 8, 12]  # closed at the stage's end, not at the listener's
    found = read(tmp_path)
    assert found["step/loss"] == [(2, 2.0), (4, 4.0), (6, 6.0), (8, 8.0), (10, 10.0), (12, 12.0)]
    assert found["test/accuracy"] == [(4, 0.0), (8, 1.0), (12, 2.0)]
    epoch = {"epoch/loss", "epoch/labels_right", "epoch/seconds", "lr", "test/accuracy", "validation/nll"}
    assert found.keys() == epoch | {"step/loss", "step/soft"}


@needs_tensorboard
@pytest.mark.parametrize("reached", [(0, 3), (1, 0), (1, 3), (2, 1)])
@pytest.mark.parametrize("saved", [(0, 0), (0, 2), (1, 0)])
def test_a_resumed_run_has_every_step_once(tmp_path: Path, reached: tuple[int, int], saved: tuple[int, int]) -> None:
    """The first process got further than the state that it saved; what it wrote of the rest is not shown."""
    with tensorboard_listener() as listener:
        train(listener, tmp_path, last=reached, offset=100.0)
    for file in (tmp_path / "tensorboard").iterdir():  # files sort by the second that they were begun in
        file.rename(file.with_name("events.out.tfevents.0000000001.an-hour-ago"))
    saved = min(saved, reached)
    with tensorboard_listener() as listener:
        train(listener, tmp_path, first=saved)
    found = read(tmp_path)
    assert steps(found["step/loss"]) == [2, 4, 6, 8, 10, 12]
    assert steps(found["test/accuracy"]) == steps(found["epoch/seconds"]) == [4, 8, 12]
    done = saved[0] * STEPS + saved[1]
    assert found["step/loss"] == [(n, n + 100.0 * (n <= done)) for n in (2, 4, 6, 8, 10, 12)]


@needs_tensorboard
def test_an_epoch_is_on_disk_when_it_ends(tmp_path: Path) -> None:
    """The state is saved right after, so a process that is killed then goes on behind these steps."""
    with tensorboard_listener() as listener:
        train(listener, tmp_path, last=(1, 0))
        assert steps(read(tmp_path)["step/loss"]) == [2, 4]
        assert steps(read(tmp_path)["lr"]) == [4]


@needs_tensorboard
def test_several_runs_in_one_process(tmp_path: Path) -> None:
    runs = [(tmp_path / "a", "teacher"), (tmp_path / "a" / "students" / "s", "student"), (tmp_path / "b", "teacher")]
    with tensorboard_listener() as listener:
        for number, (run, stage) in enumerate(runs):
            train(listener, run, stage, last=(1, number), offset=1000.0 * number)
            if number:  # the first fails: its end is never told
                listener(StageDone(stage, str(run), 1.0, {}))
                listener(StepDone(stage, 9, 1, 64, {"loss": 9.0}))  # of nobody
    for number, (run, _) in enumerate(runs):
        values = [value for _, value in read(run)["step/loss"]]
        assert values == [1000.0 * number + step for step in (2, 4, *([6] if number == 2 else []))]


@needs_tensorboard
def test_an_interrupted_run_is_closed(tmp_path: Path) -> None:
    def run() -> None:
        with tensorboard_listener() as listener:
            train(listener, tmp_path, last=(1, 3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert steps(read(tmp_path)["step/loss"]) == [2, 4, 6]


@needs_tensorboard
def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with (
        tensorboard_listener() as listener,
        pytest.raises(StoreError, match="tensorboard: cannot be written") as caught,
    ):
        train(listener, tmp_path)
    assert caught.value.cure


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="tensorboard") as caught, tensorboard_listener():
        pass
    assert "pip install tensorboard" in caught.value.cure

"""The metrics file: one line an event, no epoch twice, whatever killed the process before."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import StoreError
from distill.training.events import (
    EpochDone,
    Event,
    ExportProgress,
    MetricsFile,
    Notice,
    StageDone,
    StageSkipped,
    StageStarted,
    StepDone,
    fan_out,
)


def clock() -> datetime:
    return datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(file: MetricsFile, stage: str, epochs: int, first: int = 0, *, done: bool = True) -> None:
    """What a stage of `epochs` epochs tells, from epoch `first` on."""
    file.rewind(stage, first)
    file(StageStarted(stage, "runs/a", epochs, 5, first, 0))
    file(Notice("the probe chose one-sided"))
    for epoch in range(first, epochs):
        file(StepDone(stage, epoch, 5, 64))
        file(EpochDone(stage, epoch, epochs, 1.5, {"loss": 0.5}))
    if done:
        file(StageDone(stage, "runs/a", 9.0, {"test_accuracy": 0.75}))


def test_golden_lines(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "metrics.jsonl"
    file = MetricsFile(path, clock)
    file(Notice("before"))
    train(file, "teacher", 1)
    file(StageSkipped("student", "runs/a", "its digest is on disk"))
    file(ExportProgress(1, 2))
    file(Notice("after"))
    time = '"time": "2026-01-02T03:04:05.678+00:00"'
    assert path.read_text().splitlines() == [
        f'{{{time}, "event": "notice", "stage": null, "epoch": 0, "step": 0, "message": "before"}}',
        f'{{{time}, "event": "started", "stage": "teacher", "run": "runs/a", "epochs": 1, "steps_per_epoch": 5, '
        '"epoch": 0, "step": 0}',
        f'{{{time}, "event": "notice", "stage": "teacher", "epoch": 0, "step": 0, '
        '"message": "the probe chose one-sided"}',
        f'{{{time}, "event": "epoch", "stage": "teacher", "epoch": 0, "epochs": 1, "seconds": 1.5, '
        '"metrics": {"loss": 0.5}}',
        f'{{{time}, "event": "done", "stage": "teacher", "run": "runs/a", "seconds": 9.0, '
        '"metrics": {"test_accuracy": 0.75}}',
        f'{{{time}, "event": "notice", "stage": null, "epoch": 0, "step": 0, "message": "after"}}',
    ]


def test_the_real_clock_is_utc(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path)(Notice("x"))
    time = datetime.fromisoformat(entries(path)[0]["time"])
    assert abs((datetime.now(UTC) - time).total_seconds()) < 60


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path)(EpochDone("teacher", 0, 1, 1.0, {"nan": math.nan, "inf": -math.inf, "one": 1}))
    assert entries(path)[0]["metrics"] == {"nan": None, "inf": None, "one": 1.0}


@given(st.integers(1, 4), st.integers(0, 3), st.booleans())
@settings(deadline=None, max_examples=30)
def test_a_resumed_run_has_every_epoch_once(
    tmp_path_factory: pytest.TempPathFactory, ran: int, back: int, done: bool
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    train(MetricsFile(path), "student", 2)
    train(MetricsFile(path), "teacher", ran, done=done)
    resumed = max(0, ran - back)
    train(MetricsFile(path), "teacher", 5, resumed)
    found = entries(path)
    for stage, epochs in (("teacher", 5), ("student", 2)):
        own = [entry for entry in found if entry["stage"] == stage]
        assert [entry["epoch"] for entry in own if entry["event"] == "epoch"] == list(range(epochs))
        assert [entry["event"] for entry in own].count("done") == 1
        assert own[-1]["event"] == "done"
    starts = [entry["epoch"] for entry in found if (entry["stage"], entry["event"]) == ("teacher", "started")]
    assert starts == ([0, resumed] if resumed else [0])


STEPS = 4


def noticing(path: Path, first: tuple[int, int], last: tuple[int, int]) -> None:
    """A stage of three epochs of four steps, between two (epoch, step), with notices wherever there can be some."""
    file = MetricsFile(path, clock)
    file(Notice("warning: unreadable"))
    file(Notice("the probe chose one-sided"))
    file.rewind("teacher", *first)
    file(StageStarted("teacher", "runs/a", 3, STEPS, *first))
    for number in range(first[0] * STEPS + first[1], last[0] * STEPS + last[1]):
        epoch, step = divmod(number, STEPS)
        file(Notice(f"step {step} of epoch {epoch} begins"))
        file(StepDone("teacher", epoch, step + 1, 64))
        if step + 1 == STEPS:
            file(Notice(f"epoch {epoch} is judged"))
            file(EpochDone("teacher", epoch, 3, 1.5, {"loss": 0.5}))
    if last == (3, 0):
        file(StageDone("teacher", "runs/a", 9.0, {}))


@given(st.lists(st.tuples(st.integers(0, 3 * STEPS - 1), st.integers(0, 3 * STEPS - 1)), max_size=4))
@settings(deadline=None, max_examples=40)
def test_a_resumed_run_has_the_notices_of_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[int, int]]
) -> None:
    """`attempts`: how far each process came, and where the state that it had saved is."""
    folder = tmp_path_factory.mktemp("run")
    noticing(folder / "whole.jsonl", (0, 0), (3, 0))
    at = 0
    for reached, saved in attempts:
        noticing(folder / "resumed.jsonl", divmod(at, STEPS), divmod(max(at, reached), STEPS))
        at = max(at, min(reached, saved))
    noticing(folder / "resumed.jsonl", divmod(at, STEPS), (3, 0))
    whole, resumed = (
        [entry for entry in entries(folder / name) if entry["event"] != "started"]
        for name in ("whole.jsonl", "resumed.jsonl")
    )
    assert resumed == whole


def test_a_notice_that_was_not_told_before_stays(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for message in ("backend reference", "backend triton", "backend reference"):
        file = MetricsFile(path, clock)
        file(Notice(message))
        file.rewind("teacher", 0, 2)
        file(StageStarted("teacher", "runs/a", 1, 5, 0, 2))
    told = [entry["message"] for entry in entries(path) if entry["event"] == "notice"]
    assert told == ["backend reference", "backend triton"]


def test_notices_of_older_files_have_no_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    old = '{"time": "x", "event": "notice", "stage": "teacher", "epoch": 1, "message": "asked again"}\n'
    for epoch, step, stays in ((1, 1, True), (2, 0, True), (1, 0, False), (0, 3, False)):
        path.write_text(old)
        MetricsFile(path).rewind("teacher", epoch, step)
        assert (path.read_text() == old) == stays


def test_rewinding_nothing_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).rewind("teacher", 0)
    assert not path.exists()
    train(MetricsFile(path), "teacher", 2)
    before = path.stat()
    MetricsFile(path).rewind("student", 0)
    assert path.stat() == before


@pytest.mark.parametrize("torn", [b'{"time": "20', b"\x00\x00", b'"x"', b"{" * 100_000, b'\n\n{"stage": "tea'])
def test_a_torn_last_line_is_mended(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    train(MetricsFile(path), "teacher", 2)
    whole = entries(path)
    with path.open("ab") as file:
        file.write(torn)
    MetricsFile(path)(Notice("again"))
    found = [json.loads(line) for line in path.read_text().splitlines() if line]
    assert found[:-1] == whole
    assert found[-1]["message"] == "again"
    with path.open("ab") as file:
        file.write(torn)
    MetricsFile(path).rewind("student", 0)
    assert entries(path) == found


def test_a_file_of_one_torn_line_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"time"')
    MetricsFile(path)(Notice("x"))
    assert [entry["message"] for entry in entries(path)] == ["x"]


def test_a_whole_line_that_lacks_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    train(MetricsFile(path), "teacher", 1)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    MetricsFile(path)(Notice("x"))
    assert [entry["event"] for entry in entries(path)] == ["started", "notice", "epoch", "done", "notice"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "metrics.jsonl"):
        with pytest.raises(StoreError, match="cannot be written") as caught:
            MetricsFile(path)(Notice("x"))
        assert caught.value.cure
    with pytest.raises(StoreError, match="cannot be read"):
        MetricsFile(tmp_path).rewind("teacher", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which only Linux has")
def test_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(StoreError, match="No space left") as caught:
        MetricsFile(path)(Notice("x"))
    assert "Make room" in caught.value.cure


def test_fan_out_tells_all_in_turn() -> None:
    told: list[tuple[str, Event]] = []
    tell = fan_out(lambda event: told.append(("a", event)), lambda event: told.append(("b", event)))
    tell(Notice("x"))
    assert told == [("a", Notice("x")), ("b", Notice("x"))]
    fan_out()(Notice("nobody listens"))

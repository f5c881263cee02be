"""The console: what a person reads, and that nothing it does can hurt a run."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import pytest

from distill.training.console import HEARTBEAT, Mode, choose_mode, console_listener
from distill.training.events import (
    EpochDone,
    Event,
    ExportProgress,
    FilesRead,
    Notice,
    StageDone,
    StageSkipped,
    StageStarted,
    StepDone,
    files_read,
)

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Clock:
    """Seconds that pass when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def story(epochs: int = 2, seconds: float = 1.0) -> list[Event]:
    told: list[Event] = [StageStarted("teacher", "runs/a", epochs, 2, 0, 0)]
    for epoch in range(epochs):
        told += [StepDone("teacher", epoch, 1, 64), StepDone("teacher", epoch, 2, 64, {"loss": 1.25})]
        metrics = {"loss": 1.25, "epoch": epoch + 1.0, "validation_accuracy": 0.8125, "test_accuracy": 0.7}
        told.append(EpochDone("teacher", epoch, epochs, seconds, metrics))
    told.append(StageDone("teacher", "runs/a", 3700.0, {"test_accuracy": 0.7, "test_nll": 0.5}))
    told += [ExportProgress(1, 2), ExportProgress(2, 2), StageDone("export", "runs/a", 0.25, {})]
    return [*told, StageSkipped("student", "runs/a", "its digest is on disk"), Notice("the probe chose one-sided")]


def tell(mode: Mode, stream: io.StringIO, events: Sequence[Event], each: float = 0.5) -> str:
    clock = Clock()
    with console_listener(mode, stream, clock) as listener:
        for event in events:
            clock.now += each
            listener(event)
    return stream.getvalue()


def test_plain_lines() -> None:
    assert tell("plain", io.StringIO(), story()).splitlines() == [
        "teacher: 2 epochs of 2 steps (runs/a)",
        "teacher: epoch 1/2 in 1.0 s, loss 1.25, validation_accuracy 0.8125",
        "teacher: epoch 2/2 in 1.0 s, loss 1.25, validation_accuracy 0.8125",
        "teacher: done in 1:01 h, test_accuracy 0.7 (runs/a)",
        "export: done in 0.2 s (runs/a)",
        "student: skipped, its digest is on disk (runs/a)",
        "the probe chose one-sided",
    ]


def test_plain_resumed() -> None:
    line = tell("plain", io.StringIO(), [StageStarted("teacher", "runs/a", 9, 10, 3, 4)])
    assert line == "teacher: 9 epochs of 10 steps, resumed in epoch 4 after step 4 (runs/a)\n"


def test_plain_gives_a_sign_of_life_each_minute() -> None:
    steps = [StepDone("teacher", 3, step, 64, {"loss": 1.5} if step % 10 == 0 else {}) for step in range(1, 1001)]
    start = StageStarted("teacher", "runs/a", 5, 1000, 3, 0)
    lines = tell("plain", io.StringIO(), [start, *steps], each=0.25).splitlines()[1:]
    assert len(lines) == int(1000 * 0.25 / HEARTBEAT)
    assert lines[0] == "teacher: epoch 4 step 240/1000, 4 steps/s, 7:20 min left, loss 1.5"


def test_plain_export_gives_a_sign_of_life() -> None:
    text = tell("plain", io.StringIO(), [ExportProgress(i + 1, 300) for i in range(300)], each=1.0)
    assert text.splitlines() == [f"export: {i}/300" for i in (60, 120, 180, 240, 300)]


def test_reading_a_folder_gives_a_sign_of_life() -> None:
    events: list[Event] = []
    tell_files = files_read(events.append)
    for done in range(1, 301):
        tell_files(done, 300)
    assert events[-1] == FilesRead(300, 300)
    lines = tell("plain", io.StringIO(), events, each=1.0).splitlines()
    assert lines == [f"image files: {done}/300" for done in (60, 120, 180, 240, 300)]
    text = tell("rich", Terminal(), [*events, *story()], each=1.0)
    assert "150/300" in text
    assert "epoch 1/2" in text  # the bar has made room for the stage's own


def test_quiet_says_nothing() -> None:
    assert tell("quiet", io.StringIO(), story()) == ""


@pytest.mark.parametrize("mode", ["plain", "rich"])
def test_control_characters_and_markup_of_others_are_harmless(mode: Mode) -> None:
    nasty = "[bold]\x1b[31mred\r\n\x07:smile: {0} \u202e"
    name = StageStarted(nasty, nasty, 1, 1, 0, 0)
    events: list[Event] = [name, StepDone(nasty, 0, 1, 1, {nasty: 1.0}), Notice(nasty), StageDone(nasty, nasty, 1, {})]
    text = tell(mode, io.StringIO(), events)
    assert "[bold] [31mred   :smile: {0}" in text
    assert not set(text) & set("\x1b\r\x07\u202e")


def test_plain_on_a_stream_that_knows_only_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", newline="\n")
    with console_listener("plain", stream) as listener:
        listener(Notice("Müller"))
    assert raw.getvalue() == b"M\\xfcller\n"


class Broken(Terminal):
    """A pipe whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("mode", ["plain", "rich"])
def test_a_stream_that_goes_away_does_not_end_the_run(mode: Mode) -> None:
    tell(mode, Broken(), story())


def test_rich_keeps_a_line_for_each_stage_and_each_long_epoch() -> None:
    short, long = tell("rich", Terminal(), story()), tell("rich", Terminal(), story(seconds=45.0))
    for text in (short, long):
        assert text.count("teacher: done in 1:01 h, test_accuracy 0.7 (runs/a)") == 1
        assert text.count("student: skipped, its digest is on disk (runs/a)") == 1
        assert text.count("the probe chose one-sided") == 1
    assert "epoch 1/2 in" not in short
    assert long.count("teacher: epoch 1/2 in 45 s, loss 1.25, validation_accuracy 0.8125") == 1


def test_rich_shows_how_far_it_is() -> None:
    stream = Terminal()
    clock = Clock()
    with console_listener("rich", stream, clock) as listener:
        for event in story()[:5]:
            clock.now += 1
            listener(event)
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    last = text.split("\r")[-1]
    assert "teacher epoch 2/2" in last
    assert " 75%" in last
    assert "0.75 steps/s 1.3 s left, loss 1.25, validation 0.8125" in last


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_rich_gives_the_cursor_back(error: type[BaseException]) -> None:
    stream = Terminal()

    def train() -> None:
        with console_listener("rich", stream, Clock()) as listener:
            listener(story()[0])
            raise error

    with pytest.raises(error):
        train()
    text = stream.getvalue()
    assert text.rfind(SHOW) > text.rfind(HIDE) >= 0


def test_events_of_a_stage_that_was_never_started_are_survived() -> None:
    tell("plain", io.StringIO(), story()[1:])
    tell("rich", Terminal(), story()[1:])


def test_choose_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    assert choose_mode(Terminal(), quiet=False) == "rich"
    assert choose_mode(Terminal(), quiet=True) == "quiet"
    assert choose_mode(io.StringIO(), quiet=False) == "plain"
    assert choose_mode(closed, quiet=False) == "plain"
    monkeypatch.setenv("TERM", "dumb")
    assert choose_mode(Terminal(), quiet=False) == "plain"

"""Events for a person to watch: a live line in a terminal, plain lines in a log, or nothing.

What the console cannot show is never a reason to lose a run: when nobody reads it any more, training goes on silently,
but for a terminal whose end asks it to stop (`interrupt.py`).
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeAlias, cast

from distill.training.events import (
    EpochDone,
    Event,
    ExportProgress,
    FilesRead,
    Listener,
    Notice,
    StageDone,
    StageSkipped,
    StageStarted,
    StepDone,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Mode: TypeAlias = Literal["rich", "plain", "quiet"]

HEARTBEAT = 60.0  # seconds of silence after which the plain console says that it is still at work
REDRAW = 0.2  # seconds between updates of the live line; a step of a small net takes far less
LONG_EPOCH = 30.0  # seconds from which on an epoch is worth a line that stays in the terminal


def choose_mode(stream: TextIO, quiet: bool) -> Mode:
    """quiet when asked for, rich in a terminal that can move its cursor, plain everywhere else."""
    if quiet:
        return "quiet"
    try:
        terminal = stream.isatty()
    except ValueError:  # a closed stream
        terminal = False
    return "rich" if terminal and os.environ.get("TERM") != "dumb" else "plain"


@contextmanager
def console_listener(mode: Mode, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Iterator[Listener]:
    """A listener that shows events on a stream while the body runs.

    Leaving the body, by Ctrl-C too, removes the live line and gives the terminal its cursor back.

    Args:
        mode: from `choose_mode`.
        stream: where to write.
        clock: seconds.
    """
    if mode == "rich":
        with _live(_Sink(stream), clock) as live:
            yield live
    elif mode == "plain":
        yield _Plain(_Sink(stream), clock)
    else:
        yield _ignore


def _ignore(event: Event) -> None:
    pass


class _Pace:
    """How far a stage is and how fast it goes, over the steps of this process."""

    def __init__(self, started: StageStarted, now: float) -> None:
        self.stage = started.stage
        self.epochs = started.epochs
        self.per_epoch = started.steps_per_epoch
        self.total = started.epochs * started.steps_per_epoch
        self.done = self.first = started.resumed_epoch * started.steps_per_epoch + started.resumed_step
        self.began = now
        self.epoch = started.resumed_epoch
        self.losses: Mapping[str, float] = {}
        self.metrics: Mapping[str, float] = {}

    def step(self, event: StepDone) -> None:
        self.epoch = event.epoch
        self.done = event.epoch * self.per_epoch + event.step
        self.losses = event.losses or self.losses

    def speed(self, now: float) -> float:
        """Steps a second, evaluation included; 0 before the first."""
        return (self.done - self.first) / max(now - self.began, 1e-9)

    def left(self, now: float) -> str:
        speed = self.speed(now)
        return f"{_duration((self.total - self.done) / speed)} left" if speed > 0 and self.total else ""

    def head(self) -> str:
        return f"{_clean(self.stage)} epoch {min(self.epoch + 1, self.epochs)}/{self.epochs}"


class _Sink(io.TextIOBase):
    """A stream that takes every character and falls silent when the one behind it fails.

    rich would end the process when a pipe breaks, and Python when a terminal knows no umlaut.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False  # the reader has left, the disk is full, or the stream is closed

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return not self._gone and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        if not self._gone:
            try:
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
                self._stream.flush()
            except (OSError, ValueError):
                self._gone = True
        return len(text)


class _Lines:
    """Turns events into lines; how a line is shown is up to the subclass."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.pace: _Pace | None = None

    def show(self, line: str) -> None:
        """Writes a line that stays."""
        raise NotImplementedError

    def __call__(self, event: Event) -> None:
        match event:
            case StageStarted():
                self.pace = _Pace(event, self.clock())
                self.started(event, self.pace)
            case StepDone():
                if self.pace is not None:
                    self.pace.step(event)
                    self.stepped(self.pace)
            case EpochDone():
                self.epoch_done(event)
            case ExportProgress():
                self.counted("export", event.done, event.total)
            case FilesRead():
                self.counted("image files", event.done, event.total)
                if event.done >= event.total:
                    self.stage_done()
            case StageDone():
                self.pace = None
                self.stage_done()
                judged = {name: value for name, value in event.metrics.items() if name.endswith("accuracy")}
                self.show(f"{event.stage}: done in {_duration(event.seconds)}{_numbers(judged)} ({event.run})")
            case StageSkipped():
                self.show(f"{event.stage}: skipped, {event.reason} ({event.run})")
            case Notice():
                self.show(event.message)

    def started(self, event: StageStarted, pace: _Pace) -> None:
        raise NotImplementedError

    def stepped(self, pace: _Pace) -> None:
        raise NotImplementedError

    def epoch_done(self, event: EpochDone) -> None:
        raise NotImplementedError

    def counted(self, what: str, done: int, total: int) -> None:
        raise NotImplementedError

    def stage_done(self) -> None:
        """Clears what is shown of a running stage."""

    def epoch_line(self, event: EpochDone) -> str:
        # Neither what the line says already, nor the test part, which nobody should choose by.
        shown = {name: v for name, v in event.metrics.items() if name != "epoch" and not name.startswith("test_")}
        return f"{event.stage}: epoch {event.epoch + 1}/{event.epochs} in {_duration(event.seconds)}{_numbers(shown)}"


class _Plain(_Lines):
    """One line for each epoch, stage start and stage end, and a sign of life in between. No control characters."""

    def __init__(self, sink: _Sink, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.sink = sink
        self.last = clock()

    def show(self, line: str) -> None:
        self.last = self.clock()
        self.sink.write(f"{_clean(line)}\n")

    def started(self, event: StageStarted, pace: _Pace) -> None:
        size = f"{event.epochs} epochs of {event.steps_per_epoch} steps" if pace.total else "started"
        resumed = f", resumed in epoch {event.resumed_epoch + 1} after step {event.resumed_step}" if pace.first else ""
        self.show(f"{event.stage}: {size}{resumed} ({event.run})")

    def stepped(self, pace: _Pace) -> None:
        now = self.clock()
        if now - self.last >= HEARTBEAT:
            step = pace.done - pace.epoch * pace.per_epoch
            speed = f"{pace.speed(now):.3g} steps/s, {pace.left(now)}"
            self.show(
                f"{pace.stage}: epoch {pace.epoch + 1} step {step}/{pace.per_epoch}, {speed}{_numbers(pace.losses)}"
            )

    def epoch_done(self, event: EpochDone) -> None:
        self.show(self.epoch_line(event))

    def counted(self, what: str, done: int, total: int) -> None:
        if self.clock() - self.last >= HEARTBEAT:
            self.show(f"{what}: {done}/{total}")


@contextmanager
def _live(sink: _Sink, clock: Callable[[], float]) -> Iterator[Listener]:
    # rich takes a tenth of a second to import, which a log file need not wait for.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.table import Column

    def text(name: str, *, shrink: bool = False) -> TextColumn:
        column = Column(no_wrap=True, overflow="ellipsis", ratio=1 if shrink else None)
        return TextColumn(f"{{task.fields[{name}]}}", markup=False, table_column=column)

    columns = (text("head"), BarColumn(bar_width=16), TaskProgressColumn(), text("speed"), text("tail", shrink=True))
    # No thread redraws: worker processes are forked from here, and a lock held in that moment would stay shut in them.
    console = Console(file=cast(TextIO, sink))
    with Progress(*columns, console=console, auto_refresh=False, transient=True, expand=True) as progress:
        yield _Live(clock, progress)


class _Live(_Lines):
    """A bar over the whole stage, and a line that stays for each stage and each long epoch."""

    def __init__(self, clock: Callable[[], float], progress: Progress) -> None:
        super().__init__(clock)
        self.progress = progress
        self.task: TaskID | None = None
        self.drawn = clock()

    def show(self, line: str) -> None:
        self.progress.console.print(_clean(line), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def started(self, event: StageStarted, pace: _Pace) -> None:
        self.stage_done()
        self._bar(pace.head() if pace.total else _clean(event.stage), pace.total or None, pace.done)

    def stepped(self, pace: _Pace) -> None:
        now = self.clock()
        if now - self.drawn >= REDRAW or pace.done == pace.total:
            self.drawn = now
            self._draw(pace, now)

    def epoch_done(self, event: EpochDone) -> None:
        if event.seconds >= LONG_EPOCH:
            self.show(self.epoch_line(event))
        if self.pace is not None:
            self.pace.metrics = event.metrics
            self._draw(self.pace, self.clock())

    def counted(self, what: str, done: int, total: int) -> None:
        if self.task is None:
            self._bar(what, total, 0)
        now = self.clock()
        if now - self.drawn >= REDRAW or done >= total:
            self.drawn = now
            self._update(completed=done, total=total, speed=f"{done}/{total}")

    def stage_done(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None

    def _bar(self, head: str, total: int | None, done: int) -> None:
        self.task = self.progress.add_task("", total=total, completed=done, head=head, speed="", tail="")
        self.progress.refresh()

    def _draw(self, pace: _Pace, now: float) -> None:
        accuracy = pace.metrics.get("validation_accuracy")
        judged = {} if accuracy is None else {"validation": accuracy}
        tail = f"{pace.left(now)}{_numbers(pace.losses)}{_numbers(judged)}".removeprefix(", ")
        self._update(completed=pace.done, head=pace.head(), speed=f"{pace.speed(now):.3g} steps/s", tail=tail)

    def _update(self, **fields: Any) -> None:
        if self.task is not None:
            self.progress.update(self.task, refresh=True, **fields)


def _numbers(values: Mapping[str, float]) -> str:
    """`, loss 1.234, validation_accuracy 0.812`, to be appended."""
    return "".join(f", {_clean(name)} {value:.4g}" for name, value in values.items())


def _duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3:05 min`, `2:03 h`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def _clean(text: str) -> str:
    """Without control characters: names come from files of other people's making."""
    return "".join(character if character.isprintable() else " " for character in text)

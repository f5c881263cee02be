"""What happens while a stage runs, as typed events, and the file that keeps them.

A stage tells a listener; what listens (a file, a terminal, a test) is not the stage's business. Epochs count from 0
in events and in `metrics.jsonl`; only the console adds one. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from distill.store.atomic import mendable, write_bytes


@dataclass(frozen=True)
class StageStarted:
    """A stage begins, or goes on from where it was stopped."""

    stage: str
    run: str
    epochs: int
    steps_per_epoch: int
    resumed_epoch: int  # epochs that were done before
    resumed_step: int  # steps of the next epoch that were done before


@dataclass(frozen=True)
class StepDone:
    """One optimiser step. `losses` is often empty: looking at them waits for the device."""

    stage: str
    epoch: int
    step: int  # steps done in this epoch, this one included
    images: int  # in this step
    losses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EpochDone:
    """One epoch with its evaluation."""

    stage: str
    epoch: int
    epochs: int
    seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class ExportProgress:
    """How many of the forward passes of an export are done."""

    done: int
    total: int


@dataclass(frozen=True)
class FilesRead:
    """How many of a folder's files were read, of those whose content was not known."""

    done: int
    total: int


@dataclass(frozen=True)
class StageDone:
    """A stage has ended and its results are on disk."""

    stage: str
    run: str
    seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class StageSkipped:
    """A stage need not run."""

    stage: str
    run: str
    reason: str


@dataclass(frozen=True)
class Notice:
    """Something worth a line, such as the estimator that the probe chose."""

    message: str
    warns: bool = False  # of what a person should hear of also where other lines are not shown


Event: TypeAlias = StageStarted | StepDone | EpochDone | ExportProgress | FilesRead | StageDone | StageSkipped | Notice
Listener: TypeAlias = Callable[[Event], None]


def fan_out(*listeners: Listener) -> Listener:
    """One listener that tells each of these in turn."""

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell


def files_read(listener: Listener) -> Callable[[int, int], None]:
    """What `data.loader.open_data` wants to be given, to tell a listener."""
    return lambda done, total: listener(FilesRead(done, total))


def _now() -> datetime:
    return datetime.now(UTC)


class MetricsFile:
    """A listener that appends one line of JSON for each stage start, epoch, notice and stage end.

    Every line has `time` (UTC, ISO 8601), `event` (started, epoch, notice or done) and `stage`. An epoch's line has
    `epoch`, `epochs`, `seconds` and `metrics`; numbers that are not finite are null, as JSON has none. A notice has
    `epoch` and `step`, the steps of the epoch that were done before it; its `stage` is null where none was under way.
    The file is opened for each line, so a killed process loses at most the line it was writing, and the next line
    mends that.
    """

    def __init__(self, path: Path, now: Callable[[], datetime] = _now) -> None:
        self.path = path
        self._now = now
        self._stage: str | None = None
        self._epoch = self._step = 0  # how far the stage has come

    def __call__(self, event: Event) -> None:
        """Writes the event's line, if it has one.

        Raises:
            StoreError: the file cannot be written.
        """
        match event:
            case StageStarted():
                self._stage, self._epoch, self._step = event.stage, event.resumed_epoch, event.resumed_step
                steps = {
                    "steps_per_epoch": event.steps_per_epoch,
                    "epoch": event.resumed_epoch,
                    "step": event.resumed_step,
                }
                self._append("started", event.stage, {"run": event.run, "epochs": event.epochs, **steps})
            case StepDone():
                self._step = event.step
            case EpochDone():
                self._epoch, self._step = event.epoch + 1, 0
                when = {"epoch": event.epoch, "epochs": event.epochs, "seconds": _finite(event.seconds)}
                self._append("epoch", event.stage, {**when, "metrics": _plain(event.metrics)})
            case StageDone():
                self._stage, self._epoch, self._step = None, 0, 0
                what = {"seconds": _finite(event.seconds), "metrics": _plain(event.metrics)}
                self._append("done", event.stage, {"run": event.run, **what})
            case Notice():
                where = {"epoch": self._epoch, "step": self._step}
                self._append("notice", self._stage, {**where, "message": event.message})
            case _:
                pass

    def rewind(self, stage: str, epoch: int, step: int = 0) -> None:
        """Drops what a stage wrote from a step on, because it is about to be run again; other stages' lines stay.

        The stage's end goes too, and so do lines that a killed process left torn. Of notices from before a stage, which
        are told each time that it starts, the first of each stays. The file is replaced in one stroke.

        Args:
            stage: the stage that is about to go on.
            epoch: epochs of it that are done.
            step: steps of the next epoch that are done.

        Raises:
            StoreError: the file cannot be read or written.
        """
        try:
            old = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise mendable(self.path, "read", error) from error
        lines = old.splitlines(keepends=True)
        new = b"".join(line.rstrip(b"\r\n") + b"\n" for line in _kept(lines, stage, (epoch, step)))
        if new != old:
            write_bytes(self.path, new)

    def _append(self, event: str, stage: str | None, rest: Mapping[str, Any]) -> None:
        time = self._now().isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "event": event, "stage": stage, **rest}, allow_nan=False)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                _mend_tail(file)
                file.write(line.encode("ascii") + b"\n")
        except OSError as error:
            raise mendable(self.path, "written", error) from error


def _mend_tail(file: BinaryIO) -> None:
    """Cuts off a last line that a killed process left torn; one that lacks only its end gets that."""
    if file.seek(0, os.SEEK_END) == 0 or os.pread(file.fileno(), 1, file.tell() - 1) == b"\n":
        return
    file.seek(0)
    whole, _, tail = file.read().rpartition(b"\n")
    if _entry(tail) is None:
        file.truncate(len(whole) + 1 if whole else 0)
    else:
        file.write(b"\n")


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _kept(lines: list[bytes], stage: str, done: tuple[int, int]) -> Iterator[bytes]:
    """The lines that stay when a stage goes on after so many epochs, and steps of the next."""
    said = set()
    for line in lines:
        entry = _entry(line)
        if entry is None or (entry.get("stage") == stage and not _before(entry, done)):
            continue
        if entry.get("event") == "notice" and entry.get("stage") is None:
            message = str(entry.get("message"))
            if message in said:
                continue
            said.add(message)
        yield line


def _before(entry: dict[str, Any], done: tuple[int, int]) -> bool:
    """Whether a stage's own line is of what it has done."""
    epoch, step = entry.get("epoch"), entry.get("step", 0)  # older files lack a notice's step
    if entry.get("event") == "done" or not isinstance(epoch, int) or not isinstance(step, int):
        return False
    return epoch < done[0] if entry.get("event") == "epoch" else (epoch, step) < done


def _plain(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in metrics.items()}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

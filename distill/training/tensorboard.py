"""Events as curves for TensorBoard: one folder of event files in each run folder, on one axis, the steps of training.

Nothing here imports torch or TensorBoard before a listener is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from distill.errors import RunError
from distill.store.atomic import mendable
from distill.training.events import EpochDone, Event, Listener, StageDone, StageStarted, StepDone

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
_FLUSH_SECONDS = 10  # what a killed process loses, at most; of an epoch that ended it loses nothing
_PARTS = ("validation", "test")


@contextmanager
def tensorboard_listener() -> Iterator[Listener]:
    """A listener that writes scalars to `tensorboard/` in the folder of each run that it is told of, one after another.

    Tags: `step/<loss>`, as often as the losses are looked at; and after each epoch `validation/<metric>`,
    `test/<metric>`, `lr`, and `epoch/<metric>` for the rest (mean losses, seconds). The axis of all of them counts
    the steps done in the whole run. Leaving the body, by Ctrl-C too, closes what is open.

    Raises:
        RunError: TensorBoard is not installed.
        StoreError: on entering never; the listener raises it when a file cannot be written.
    """
    if find_spec("tensorboard") is None:
        raise RunError("curves for TensorBoard need the package tensorboard", cure="run `pip install tensorboard`.")
    listener = _TensorBoard()
    try:
        yield listener
    finally:
        listener.close()


class _TensorBoard:
    """See `tensorboard_listener`. At most one run is open."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._folder = Path()
        self._stage = ""
        self._steps = 0  # in an epoch

    def __call__(self, event: Event) -> None:
        """Writes the event's scalars, if it has some.

        Raises:
            StoreError: a file cannot be written.
        """
        try:
            match event:
                case StageStarted():
                    self._open(event)
                case StepDone() if event.stage == self._stage:
                    values = {f"step/{name}": value for name, value in event.losses.items()}
                    self._write(values, event.epoch * self._steps + event.step)
                case EpochDone() if event.stage == self._stage:
                    values = {"epoch/seconds": event.seconds} | _tagged(event.metrics)
                    self._write(values, (event.epoch + 1) * self._steps)
                    # On disk before the stage saves its state, from which a resumed one will go on.
                    if self._writer is not None:
                        self._writer.flush()
                case StageDone() if event.stage == self._stage:
                    self.close()
                case _:
                    pass
        except OSError as error:
            raise mendable(self._folder, "written", error) from error

    def close(self) -> None:
        """Closes the run that is open, if one is."""
        writer, self._writer, self._stage = self._writer, None, ""
        if writer is not None:
            writer.close()

    def _open(self, event: StageStarted) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an optional package, and torch

        self.close()
        self._folder, self._steps = Path(event.run) / FOLDER, event.steps_per_epoch
        done = event.resumed_epoch * event.steps_per_epoch + event.resumed_step
        # What an earlier process wrote of the steps that are about to be run again no longer counts.
        self._writer = SummaryWriter(str(self._folder), purge_step=done + 1, flush_secs=_FLUSH_SECONDS)
        self._stage = event.stage

    def _write(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)


def _tagged(metrics: Mapping[str, float]) -> dict[str, float]:
    """An epoch's metrics under the tags that they are shown by; which epoch it is, the axis says."""
    return {_tag(name): value for name, value in metrics.items() if name != "epoch"}


def _tag(name: str) -> str:
    part, _, metric = name.partition("_")
    if part in _PARTS and metric:
        return f"{part}/{metric}"
    return name if name == "lr" else f"epoch/{name}"

"""Ctrl-C, SIGTERM and a closed terminal finish the running step, save, and leave; a second Ctrl-C leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask to stop: Ctrl-C, a scheduler or `kill`, and a terminal or connection that closes."""


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The stage was asked to stop and its state is on disk: the same command goes on from there."""

    def __init__(self, stage: str, where: str) -> None:
        super().__init__(f"{stage} interrupted {where}; the same command goes on from there")


class StopRequest:
    """True once a signal asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def listen_for_stop() -> Iterator[StopRequest]:
    """Catches `STOPS` inside the body, but for one that is ignored: by nohup, a shell's `&`, a worker.

    In other threads Python allows no handler; nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    heard = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, request.ask) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Ctrl-C and SIGTERM finish the running step, save, and leave; a second Ctrl-C leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
    """Catches SIGINT and SIGTERM inside the body, but for one that is ignored: by nohup, a shell's `&`, a worker.

    In other threads Python allows no handler; nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, request.ask) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

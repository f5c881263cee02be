"""Processes that run cells of a comparison beside each other. Nothing here imports torch before a worker does.

A worker is a fresh interpreter (spawn) with a pipe to the program. Its cells come through the pipe; when the other end
closes, because the program has ended in whatever way, the worker stops as by SIGTERM: what it trains is saved.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection, get_context, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

from distill.recipe.grid import Cell
from distill.report.results import write_failed
from distill.stages.cells import Outcome, attempt, saying
from distill.training.events import Event, Listener, Notice, fan_out
from distill.training.interrupt import Interrupted

GRACE = 60.0  # seconds that a worker has to save what it trains
# Ctrl-C and a terminal's end reach every process of it; who is to stop is for the program to say.
_OF_A_TERMINAL = (signal.SIGINT, signal.SIGHUP)
_Job: TypeAlias = "tuple[Cell, Path, int, bool]"  # the comparison's folder, threads, curves
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def serve(pipe: Connection) -> None:
    """A worker's life: runs the cells that come through the pipe, one after the other, and answers with outcomes."""
    os.dup2(2, 1)  # the program's standard output may be one JSON object
    for number in _OF_A_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_A_TERMINAL)  # see `_held_back`
    jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, jobs), daemon=True).start()
    while True:
        cell, folder, threads, curves = jobs.get()
        os.environ |= dict.fromkeys(_THREADS, str(threads))  # read when torch is imported
        try:
            with ExitStack() as stack:
                outcome = attempt(with_threads(cell, threads), folder, _listener(pipe, stack, curves))
        except Interrupted:  # who was asked to stop takes no other cell, or the program would wait for it in vain
            _answer(pipe, Outcome(cell.number, "interrupted"))
            return
        _answer(pipe, outcome)


def _answer(pipe: Connection, told: Outcome | Notice) -> None:
    """Tells the program, unless it has ended in the meantime: `_listen` stops the worker then."""
    with suppress(OSError):
        pipe.send(told)


def _listener(pipe: Connection, stack: ExitStack, curves: bool) -> Listener:
    def warn(event: Event) -> None:
        """What else happens in a cell is in its metrics.jsonl."""
        if isinstance(event, Notice) and event.warns:
            _answer(pipe, event)

    if not curves:
        return warn
    from distill.training.tensorboard import tensorboard_listener

    return fan_out(warn, stack.enter_context(tensorboard_listener()))


def _listen(pipe: Connection, jobs: queue.SimpleQueue[_Job]) -> None:
    try:
        while True:
            jobs.put(pipe.recv())
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)


@contextmanager
def _held_back() -> Iterator[None]:
    """For a process that is started inside: until `serve` ignores what a terminal sends, it cannot end by that."""
    resource_tracker.ensure_running()  # starting that one lifts the hold
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_A_TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def with_threads(cell: Cell, threads: int) -> Cell:
    """The cell on so many threads; its run folder's recipe says so."""
    return replace(cell, recipe=cell.recipe.model_copy(update={"threads": threads}))


class Worker:
    """The program's side of a worker."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        with _held_back():
            self.process.start()
        theirs.close()  # so that a worker's end is seen here
        self.cell: Cell | None = None
        self.folder = Path()
        self._began = 0.0
        self._leaves = False  # was asked to stop: it ends, sooner or later

    def run(self, cell: Cell, folder: Path, threads: int, *, curves: bool) -> None:
        """Hands it a cell."""
        self.cell, self.folder, self._began = cell, folder, time.monotonic()
        with suppress(OSError):  # one that has died idle; `outcome` says so
            self.pipe.send((cell, folder, threads, curves))

    def heard(self) -> Outcome | Notice | None:
        """A warning about its cell, or what became of it, once there is one; a worker that has died has failed."""
        assert self.cell is not None
        try:
            if self.pipe.poll():
                found: Outcome | Notice = self.pipe.recv()
                if isinstance(found, Outcome):
                    self.cell, self._leaves = None, found.state == "interrupted"
                return found
        except (EOFError, OSError):
            pass
        else:
            if self.process.is_alive():
                return None
        return self._died()

    def _died(self) -> Outcome:
        assert self.cell is not None
        self.process.join()
        reason = _ending(self.process.exitcode or 0)
        with saying(f"cell {self.cell.number}, {self.cell}, failed: {reason}"):
            write_failed(self.folder, self.cell, reason)
        return Outcome(self.cell.number, "failed", time.monotonic() - self._began, reason, fault=True)

    @property
    def alive(self) -> bool:
        """Whether it can take another cell."""
        return not self._leaves and self.process.is_alive()


def _ending(code: int) -> str:
    """How a process ended that should not have."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name if -code in {*map(int, signal.Signals)} else f"signal {-code}"
    return f"its process was ended by {name}" + (", as the system does when memory runs out" if code == -9 else "")


def waited(workers: Sequence[Worker], seconds: float) -> Iterator[Worker]:
    """The busy workers that have something to say, after at most so many seconds."""
    busy = {worker.pipe: worker for worker in workers if worker.cell is not None}
    connection.wait([*busy, *(worker.process.sentinel for worker in busy.values())], seconds)
    yield from busy.values()


def end(workers: Sequence[Worker]) -> None:
    """Stops them: idle ones at once, busy ones when what they train is saved, slow ones by force."""
    for worker in workers:
        worker.process.terminate()
    until = time.monotonic() + GRACE
    try:
        for worker in workers:
            worker.process.join(max(0.0, until - time.monotonic()))
    finally:  # a second Ctrl-C, too
        for worker in workers:
            if worker.process.is_alive():
                worker.process.kill()
            worker.pipe.close()

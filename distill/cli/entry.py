"""Signals, streams and exit codes, around the commands.

Exit codes: 0 done, 2 something that the user can mend, 130 interrupted, 1 a fault of ours. This module imports nothing
that takes time, so that Ctrl-C is heard from the first moment on.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from distill.cli.output import print_json
from distill.errors import UserError
from distill.training.interrupt import STOPS

_PLACE = "Check that the place exists, may be written to and is not full."


class Stop:
    """Whether a signal asked the program to end. `training.interrupt` takes the signals over inside its loops."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        """Catches `STOPS` from now on; one that the caller (nohup, a shell's `&`) ignores stays ignored."""
        for number in STOPS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.ask)
        # What a half-finished import or a destructor has to say about being interrupted helps nobody.
        heard = sys.unraisablehook
        sys.unraisablehook = lambda problem: None if self.asked else heard(problem)

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. Native code may turn the exception into one of its own, hence the memory."""
        self.asked = True
        if _loads_native_code():
            # C++ code that is told of an exception while it loads ends the process by abort().
            code = _fail("interrupted", "", 130)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        raise KeyboardInterrupt


def _loads_native_code() -> bool:
    """Whether torch, or what comes with it, is being imported just now."""
    specs = (getattr(sys.modules.get(name), "__spec__", None) for name in ("torch", "torchvision"))
    return any(getattr(spec, "_initializing", False) for spec in specs)


STOP = Stop()


class Outlet(io.FileIO):
    """A standard stream that never ends the program: the first failure is remembered, the rest is dropped."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Says that all was written, whatever happened."""
        size = memoryview(data).nbytes
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
        return size


def main() -> NoReturn:
    """The entry point."""
    try:
        STOP.listen()
        outlet = _open_streams()
        code = run()
        sys.stdout.flush()
        # A reader that left (head, less) has what it wanted: the exit code is the command's own.
        if code == 0 and outlet.failure is not None and outlet.failure.errno != errno.EPIPE:
            code = _fail(f"standard output: {outlet.failure.strerror}", _PLACE, 2)
        sys.stderr.flush()
    except KeyboardInterrupt:  # between two lines above
        code = 130
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    if STOP.asked:
        # No tidying up of half-imported modules; and Python, where the signal met an exec(), would end by SIGINT.
        os._exit(code)
    sys.exit(code)


def _open_streams() -> Outlet:
    """Standard output and error that no closed pipe, full disk or narrow encoding can break."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a closed stream would give its number, and what is printed, to the next file that is opened
    os.close(number)
    outlet = Outlet(1)
    sys.stdout, sys.stderr = _text(outlet, sys.stdout), _text(Outlet(2), sys.stderr)
    return outlet


def _text(outlet: Outlet, before: TextIO | None) -> TextIO:
    lines = bool(getattr(before, "line_buffering", True) or getattr(before, "write_through", False))
    encoding = getattr(before, "encoding", None) or "utf-8"
    buffer = io.BufferedWriter(outlet)
    return io.TextIOWrapper(buffer, encoding=encoding, errors="backslashreplace", line_buffering=lines)


def run() -> int:
    """Runs the command of `sys.argv` and tells what went wrong; the exit code."""
    try:
        code = _command()
    except KeyboardInterrupt:
        STOP.asked = True
    except BaseException as error:
        if not STOP.asked:
            return _told(error)
        if type(error).__name__ == "Interrupted":
            return _fail(str(error), "", 130)
    else:
        # A library may have swallowed the interruption, and gone on without what it was doing.
        if not STOP.asked:
            return code
    return _fail("interrupted", "", 130)


def _command() -> int:
    from distill.cli.commands import app

    result: Any = app(standalone_mode=False)
    return int(result) if isinstance(result, int) else 0


def _told(error: BaseException) -> int:
    """A user's mistake, an interruption, or a fault of ours, in words."""
    if isinstance(error, UserError):
        return _fail(error.message, error.cure, 2)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, OSError) and error.errno is not None:
        if isinstance(error, PermissionError) and isinstance(error.filename, str):
            from distill.store.atomic import mendable, unreadable

            if unreadable(path := Path(error.filename)):  # room to write would be no cure
                found = mendable(path, "read", error)
                return _fail(found.message, found.cure, 2)
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror}", _PLACE, 2)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's own complaints
        error.show()  # type: ignore[attr-defined]
        context = getattr(error, "ctx", None)
        asked = context.command_path if context is not None else "distill"
        _json(error.format_message(), f"`{asked} --help` says how it is used.", int(error.exit_code))
        return int(error.exit_code)
    if type(error).__name__ == "Abort":
        return _fail("interrupted", "", 130)
    if type(error).__name__ == "Interrupted":
        return _fail(str(error), "", 130)
    traceback.print_exception(error)
    print("\nThis is a fault of distill, not of yours; please report it with the lines above.", file=sys.stderr)
    _json(f"{type(error).__name__}: {error}", "This is a fault of distill; please report it.", 1)
    return 1


def _fail(message: str, cure: str, code: int) -> int:
    print(f"error: {message}" if code == 2 else message, file=sys.stderr)
    if cure:
        print(f"  {cure}", file=sys.stderr)
    _json(message, cure, code)
    return code


def _json(error: str, cure: str, code: int) -> None:
    """The failure as one object on stdout, for those who asked for JSON."""
    if "--json" in sys.argv:
        print_json({"error": error, "cure": cure, "exit_code": code})

"""A run folder is one process's at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from distill.errors import RunError, StoreError
from distill.store.atomic import is_temporary, mendable, writable_folder

LOCK = ".lock"


@contextmanager
def locked(folder: Path, *, named: bool = False) -> Iterator[None]:
    """Keeps a second process out of a run folder; the lock ends with the process, however it ends.

    Args:
        folder: the run's.
        named: whether it is chosen by the recipe's name, so that another name is a way out.

    Raises:
        RunError: another process is at work there.
        StoreError: the folder cannot be written to, or the lock not be opened.
    """
    writable_folder(folder)
    with _opened_lock(folder / LOCK) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"{folder}: another process is at work in this run folder",
                cure="wait for it, or choose another name: --set name=..." if named else "wait for it.",
            ) from error
        # With the lock held nobody is writing now, but who draws.
        for place in (folder, folder / "state", folder / "labels", folder / "figures"):
            _sweep(place)
        yield


@contextmanager
def drawing(folder: Path) -> Iterator[None]:
    """Keeps whoever takes the run's lock from sweeping away what is being written to one of its folders without it.

    Any number of processes may draw in a folder at once. What killed ones left over there goes first, if nobody does.
    """
    _sweep(folder)
    with _flocked(folder, fcntl.LOCK_SH):
        yield


def at_work(folder: Path) -> bool:
    """Whether a process is at work in a run folder, this one too if it has the lock; nothing is written to find out."""
    path = folder / LOCK
    if not path.is_file():
        return False
    try:
        with path.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it may not be read, or its file system knows no locks
        return False
    return False


def waiting(folder: Path) -> str:
    """For the beginning of a cure that is a command: while another process is at work there, it would be refused."""
    return "wait for the process that is at work there; if it is still missing then, " if at_work(folder) else ""


def _opened_lock(path: Path) -> IO[str]:
    """The file to lock. One that another user made may only be read, which is enough for flock.

    Not read-only whenever it is there: NFS locks exclusively only what is open for writing.
    """
    try:
        if path.is_fifo():  # opening it would wait for somebody to read it
            raise StoreError(f"{path}: is a named pipe, expected the run's lock, a file", cure="delete it.")
        with suppress(PermissionError):
            return path.open("a")
        return path.open()
    except OSError as error:
        raise mendable(path, "read", error) from error


def _sweep(folder: Path) -> None:
    """Removes what a killed process was writing, unless others are drawing there."""
    if not folder.is_dir():
        return
    with suppress(BlockingIOError, PermissionError), _flocked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        for path in folder.glob(".*.tmp"):
            if is_temporary(path.name):
                path.unlink(missing_ok=True)


@contextmanager
def _flocked(folder: Path, how: int) -> Iterator[None]:
    """Locks the folder itself, which leaves no file behind; where its file system cannot, nobody is kept out.

    Raises:
        BlockingIOError: another process stands against it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, how)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
        yield
    finally:
        os.close(handle)

"""A run folder as it is while another process is at work in it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.report.lock import LOCK


@contextmanager
def busy(folder: Path) -> Iterator[None]:
    """flock stands against a second handle of this process as against another's; `locked` would be its own."""
    with (folder / LOCK).open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

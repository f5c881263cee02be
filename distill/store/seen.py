"""Which stores were verified before, so that an unchanged one is not read from end to end at every opening.

A hidden file in the store keeps size, times and inode of every file as they were when all digests were found right. Any
write, copy or replacement changes one of them. A disk that loses a bit changes none: that is for `distill verify`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from distill.errors import StoreError
from distill.store.json_files import read_json, write_json

SEEN = ".verified.json"
# A file may change twice within one tick of a file system's clock (2 s on the coarsest) and keep its times.
_SETTLED = 2.0

Stamps = dict[str, list[int]]


def stamps(folder: Path, names: Iterable[str]) -> Stamps:
    """Size, time of change of the content and of the entry, and inode of each file; one that is missing is left out."""
    found = {}
    for name in names:
        with suppress(OSError):
            status = (folder / name).stat()
            found[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return found


def seen(folder: Path, now: Stamps) -> bool:
    """Whether the files with these stamps were found right before."""
    try:
        return bool(read_json(folder / SEEN) == now)
    except StoreError:
        return False


def remember(folder: Path, before: Stamps) -> None:
    """Notes that the files were found right; `before` was taken before they were read.

    Files that have just changed are not noted, and a store that cannot be written to is verified every time.
    """
    settled = (time.time() - _SETTLED) * 1e9
    if all(max(entry[1:3]) < settled for entry in before.values()):
        with suppress(StoreError):
            write_json(folder / SEEN, before)

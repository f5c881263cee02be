"""Files that are either the old ones or the new ones, never half of each.

A file is written beside its place, flushed to the disk, and moved over it; a process that is killed, or a disk that is
full, leaves the old file as it was. Every failure that a user can mend is a `StoreError`. Nothing here imports torch.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shlex
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from distill.errors import StoreError

_BLOCK = 2**20
_TEMPORARY = re.compile(r"\.[^/]+\.[0-9a-f]{16}\.tmp")

NO_SPACE = "Make room on that disk (or raise the quota), then run the same command again."
_NO_RIGHT = "Choose a folder that you may write to, or change its permissions."
_IN_THE_WAY = "A file is where a folder has to be, or the other way round: move it away, or choose another place."
_CURES = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EFBIG: NO_SPACE,
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: _NO_RIGHT,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOENT: "Check the path; its folder has to be there.",
    errno.ELOOP: "Remove the link that leads back to itself.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EMFILE: "Raise the limit of open files: ulimit -n 4096.",
}


def mendable(path: Path, action: str, error: OSError) -> StoreError:
    """The `StoreError` for an `OSError`: `runs/a: cannot be written: No space left on device`, and its cure.

    Where the right to read is missing it names what has to be opened, which may be a folder above.
    """
    reason = error.strerror or str(error)
    if action == "read" and isinstance(error, PermissionError):
        closed = barred(path)
        cure = f"Let yourself read it (chmod -R u+rX {shlex.quote(str(closed))}), or ask its owner to."
        return StoreError(f"{closed}: cannot be read: {reason}", cure=cure)
    return StoreError(f"{path}: cannot be {action}: {reason}", cure=_CURES.get(error.errno or 0, ""))


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came of, is a disk or a quota that is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def barred(path: Path) -> Path:
    """The first folder on the way to a path that may not be entered; the path itself where all may."""
    return next((part for part in reversed(path.parents) if part.is_dir() and not os.access(part, os.X_OK)), path)


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path that a file of ours names lies outside a folder, links followed.

    One that lies nowhere does not: links in a circle, or a name that no file can have. There is no file then.
    """
    try:
        place = os.path.realpath(path)
    except ValueError:
        return False
    return not Path(place).is_relative_to(os.path.realpath(folder))


def unreadable(path: Path) -> bool:
    """Whether the right to read it is missing, as far as the operating system tells without a try."""
    return barred(path) != path or (os.path.lexists(path) and not os.access(path, os.R_OK))


def write_bytes(path: Path, data: bytes | Iterable[bytes | memoryview]) -> str:
    """Writes a file in one stroke and returns the sha256 of its content, in hexadecimal.

    Args:
        path: the file; its folder exists.
        data: the content, whole or in pieces. Pieces are written as they come, so a large file needs little memory.

    Raises:
        StoreError: the operating system refused. The old file, if there was one, is untouched and nothing is left over.
    """
    path = Path(path)
    pieces = [data] if isinstance(data, bytes) else data
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    digest = hashlib.sha256()
    try:
        # 0o666 lets the umask decide, as for any file; tempfile would make files that colleagues cannot read.
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o666)) as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise mendable(path, "written", error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    """Makes the new name itself durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network and FUSE file systems cannot flush a folder. The file itself is flushed already.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is what a killed `write_bytes` left over."""
    return _TEMPORARY.fullmatch(name) is not None


def check_regular(path: Path) -> int:
    """The size of a file in bytes.

    Raises:
        StoreError: it is missing, or no regular file (reading a pipe would wait for ever).
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file", cure="Check the path; the file may have been moved.") from error
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
        raise mendable(path, "read", reason) from error
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{path}: is not a regular file", cure="Check the path.")
    return found.st_size


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal, read in blocks of 1 MiB.

    Raises:
        StoreError: the file is missing or cannot be read.
    """
    path = Path(path)
    check_regular(path)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise mendable(path, "read", error) from error
    return digest.hexdigest()


def writable_folder(path: Path) -> Path:
    """Makes the folder (and those above it) if need be, proves that it can be written to, and returns it.

    Raises:
        StoreError: a file is in the way, or the folder cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Asking for permissions is not enough: a read-only mount or a quota shows only when something is written.
        probe = path / f".probe.{secrets.token_hex(8)}.tmp"
        try:
            probe.write_bytes(b"")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise _unusable(path, error) from error
    return path


def check_place(path: Path) -> None:
    """Whether `writable_folder` could make this folder, as far as that can be known without writing anything.

    Raises:
        StoreError: a file is in the way, or the folder that is there may not be written to.
    """
    try:
        there = next(part for part in (path.absolute(), *path.absolute().parents) if os.path.lexists(part))
        number = errno.ENOTDIR if not there.is_dir() else errno.EACCES if not os.access(there, os.W_OK | os.X_OK) else 0
        if not number:
            path.exists()  # raises for a name that is too long
            return
        error = OSError(number, os.strerror(number))
    except OSError as found:
        error = found
    raise _unusable(path, error)


def _unusable(path: Path, error: OSError) -> StoreError:
    """Names the part of the path that is no folder, where that is the reason."""
    found = mendable(path, "used as a folder to write to", error)
    parts = (part for part in (*reversed(path.parents), path) if os.path.lexists(part) and not part.is_dir())
    part = next(parts, None) if error.errno in (errno.ENOTDIR, errno.EEXIST) else None
    return StoreError(f"{found.message}; {part} is in the way", cure=found.cure) if part else found

"""What is in a folder's files: a sha256 of each, and which cannot be decoded. Found out once, then remembered.

Reading every file of a large folder takes minutes, decoding it longer, so the findings are kept in the user's cache
folder. A finding is bound to the file's path, size, times of change and inode, which do not all survive that it
is written to, moved or swapped with another; a file that changed a moment ago is not remembered, because its
times may not show the next change. A cache that is damaged, or was made by another decoder, counts as none.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import features

from distill.data.ahead import Part, filled
from distill.data.decode import DECODER, Undecodable, decode, decoders, read_file
from distill.errors import DataError

Progress: TypeAlias = Callable[[int, int], None]  # files done, of so many

SETTLED_NS = 3 * 10**9  # some file systems keep times to 2 seconds only
_SAVE_EVERY = 30.0  # seconds between saves, so that an interrupted survey goes on where it stopped
_GROUP = 32  # files a task
_MAGIC = b"distill: contents of a folder, 1\n"
_SHA, _KEY = 32, 16
_ROW = _KEY + _SHA + 1  # key, sha256, 1 when the file is known to decode


@dataclass(frozen=True)
class Contents:
    """What was found out about N files.

    Args:
        sha256: uint8 [N, 32].
        unreadable: why, by file number, ascending; only those whose bytes cannot be decoded.
    """

    sha256: npt.NDArray[np.uint8]
    unreadable: dict[int, str]


class Survey:
    """The files of a folder, with what is remembered of them."""

    def __init__(self, root: Path, files: Sequence[str], size: int, *, decodes: bool) -> None:
        """Looks at every file's entry in its folder and at the cache; opens no file of the folder.

        Args:
            root: the folder.
            files: N paths relative to it.
            size: side in pixels to which the files are decoded.
            decodes: whether it is asked which files decode; if not, none counts as unreadable.

        Raises:
            DataError: a file is missing.
        """
        self.root, self.files, self.size, self.decodes = root, files, size, decodes
        self.bytes = 0  # of all files together
        self._keys: list[bytes] = []
        for file in files:
            status = _stat(root, file)
            self.bytes += status.st_size
            self._keys.append(_key(file, status))
        # Key -> sha256 and flag; of files that are gone or changed too, until it is saved.
        self._known = {} if self._cache is None else _load(self._cache, self._decoder)

    @property
    def missing(self) -> list[int]:
        """Numbers of the files that have to be opened. Bad news is never remembered: such files are tried again."""
        rows = (self._known.get(key) for key in self._keys)
        return [n for n, row in enumerate(rows) if row is None or (self.decodes and not row[_SHA])]

    def run(self, workers: int, progress: Progress | None = None) -> Contents:
        """Opens what has to be opened, in threads.

        Raises:
            DataError: naming the first file, in order, that cannot be read (for lack of rights, say).
        """
        missing = self.missing
        sha256 = np.zeros((len(self.files), _SHA), np.uint8)
        for number, row in enumerate(map(self._known.get, self._keys)):
            if row is not None:
                sha256[number] = np.frombuffer(row, np.uint8, _SHA)
        unreadable: dict[int, str] = {}
        done, new, saved = 0, False, time.monotonic()
        try:
            for found in filled(self._jobs(missing), workers=workers, ahead=4 * workers):
                for number, settled, digest, reason in found:
                    sha256[number] = np.frombuffer(digest, np.uint8)
                    if reason is not None:
                        unreadable[number] = reason
                    if settled is not None:
                        self._known[settled] = digest + bytes([self.decodes and reason is None])
                        new = True
                done += len(found)
                if progress is not None:
                    progress(done, len(missing))
                if new and time.monotonic() - saved > _SAVE_EVERY:
                    self._save()
                    new, saved = False, time.monotonic()
        finally:
            if new:
                self._save()
        return Contents(sha256, unreadable)

    def _jobs(self, numbers: Sequence[int]) -> Iterator[tuple[list[_Found], Iterable[Part]]]:
        for start in range(0, len(numbers), _GROUP):
            found: list[_Found] = []
            yield found, [partial(self._look, numbers[start : start + _GROUP], found)]

    def _look(self, numbers: Sequence[int], found: list[_Found]) -> None:
        for number in numbers:
            file = self.files[number]
            status = _stat(self.root, file)
            changed = max(status.st_mtime_ns, status.st_ctime_ns)
            key = _key(file, status) if time.time_ns() - changed > SETTLED_NS else None
            content = read_file(f"{self.root}/{file}")
            reason = None
            if self.decodes:
                try:
                    decode(content, self.size)
                except Undecodable as error:
                    reason = str(error)
            found.append((number, key, hashlib.sha256(content).digest(), reason))

    @property
    def _cache(self) -> Path | None:
        folder, name = cache_folder(), hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:32]
        return None if folder is None else folder / f"{name}.contents"

    @property
    def _decoder(self) -> bytes:
        """Whose judgement it is that a file decodes."""
        versions = sorted({**decoders(), "zlib": features.version("zlib")}.items())
        return hashlib.sha256(repr((DECODER, self.size, versions)).encode()).digest()

    def _save(self) -> None:
        """A cache that cannot be written costs time, not the run."""
        if self._cache is None:
            return
        rows = b"".join(key + self._known[key] for key in self._keys if key in self._known)
        body = self._decoder + rows
        with suppress(OSError):
            _replace(self._cache, _MAGIC + hashlib.sha256(body).digest() + body)


# Number, key if it is to be remembered, sha256, why it is unreadable.
_Found: TypeAlias = tuple[int, bytes | None, bytes, str | None]


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/distill`, by default `~/.cache/distill`; None for a user without a home."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(home) if Path(home).is_absolute() else Path("~/.cache").expanduser()
    except RuntimeError:
        return None
    return base / "distill"


def _stat(root: Path, file: str) -> os.stat_result:
    try:
        return os.stat(f"{root}/{file}")  # noqa: PTH116 - a Path for each of a million files takes seconds
    except OSError as error:
        raise DataError(
            f"{root}/{file}: cannot be read: {error.strerror}", cure="The folder has changed; put the image back."
        ) from error


def _key(file: str, status: os.stat_result) -> bytes:
    """What a file has to keep for its content to be taken as known."""
    state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return hashlib.blake2b(os.fsencode(file) + b"\0" + repr(state).encode(), digest_size=_KEY).digest()


def _load(path: Path, decoder: bytes) -> dict[bytes, bytes]:
    """Rows by key; none when the file is not whole. Made by another decoder, only the digests are taken over."""
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    digest, body = content[len(_MAGIC) : len(_MAGIC) + _SHA], content[len(_MAGIC) + _SHA :]
    if not content.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        return {}
    same, rows = body[:_SHA] == decoder, body[_SHA:]
    found = {rows[at : at + _KEY]: rows[at + _KEY : at + _ROW] for at in range(0, len(rows), _ROW)}
    return found if same else {key: row[:_SHA] + b"\0" for key, row in found.items()}


def _replace(path: Path, content: bytes) -> None:
    """The file is the old one or the new one. Not flushed to the disk: what a crash leaves torn is no cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

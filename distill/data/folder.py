"""Image folders of any size, decoded on demand by threads.

Every file belongs to the fingerprint by the sha256 of its bytes, and once that is known, each file that is opened is
held against it: what is trained on is what the runs and stores are bound to, or an error.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill.data.ahead import Part, filled
from distill.data.contents import Contents, Progress, Survey
from distill.data.decode import DECODER, Undecodable, decode, read_file
from distill.data.scan import Scan, scan, shown
from distill.errors import DataError

DEFAULT_SIZE = 224
Unreadable = Literal["error", "leave-out"]

_GROUP = 8  # images a task: a task costs as much as a fifth of a tiny image
_AHEAD = 4  # batches that are decoded ahead, at most
_AHEAD_BYTES = 256 * 2**20  # and no more than this; but always one
_KEPT_BYTES = 2**30  # decoded images are kept when all of them fit in this, and in a quarter of the memory
# Bytes, on average: what decoding such a file takes is mostly Python, and threads would only wait for each other.
_SMALL = 8 * 2**10
_QUICKLY = 5_000  # files; `quick` decodes no more just to find those that cannot be


class FolderSource:
    """A source whose images are files.

    Args:
        root: the folder.
        found: what it holds.
        size: side in pixels of what `fetch` returns.
        unreadable: what an image that cannot be decoded is: an error when it is fetched, or left out from the start.
        workers: threads that decode; results do not depend on it.
        progress: told how many files were read, of how many, when they have to be.
        quick: read no file now; only, where unreadable ones are left out, as many as take seconds: see `undecided`.

    Raises:
        DataError: a file is missing or may not be read.
    """

    name = "folder"
    decodes = True

    def __init__(
        self,
        root: Path,
        found: Scan,
        size: int,
        unreadable: Unreadable,
        *,
        workers: int,
        progress: Progress | None = None,
        quick: bool = False,
    ) -> None:
        self.root, self.size, self.workers, self._progress = root, size, workers, progress
        self.classes, self.files, self.test_start = found.classes, found.files, found.test_start
        self.ignored, self.unused = found.ignored, found.unused
        self.targets = torch.tensor(found.targets, dtype=torch.int64)
        self.undecided = 0  # files of which it is not known whether they decode
        self._leave_out = unreadable == "leave-out"
        self._kept = _Kept.fitting(len(self.files), self.shape)
        self._background: ThreadPoolExecutor | None = None
        self._prepared: tuple[Tensor, Tensor, list[Future[object]]] | None = None
        self._contents: Contents | None = None
        if quick and not self._leave_out:
            return
        survey = self._survey()
        if survey.bytes < _SMALL * len(self.files):
            self.workers = 1
        missing = len(survey.missing) if quick else 0
        if missing > _QUICKLY:
            self.undecided = missing
        else:
            self._contents = survey.run(self.workers, progress)

    def _survey(self) -> Survey:
        return Survey(self.root, self.files, self.size, decodes=self._leave_out)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels (always 3), height, width."""
        return 3, self.size, self.size

    @property
    def unreadable(self) -> dict[int, str]:
        """Images that are left out: index -> 'file: reason', ascending. Always empty when they are errors."""
        found = {} if self._contents is None else self._contents.unreadable
        return {index: f"{shown(self.files[index])}: {reason}" for index, reason in found.items()}

    def fetch(self, indices: Tensor) -> Tensor:
        """int64 [B] -> uint8 [B, 3, H, W], in any order, repeated or not; the files are decoded in parallel.

        Raises:
            DataError: naming the first file, in the order of `indices`, that cannot be decoded or has changed.
        """
        prepared, self._prepared = self._prepared, None
        if prepared is None or not torch.equal(prepared[0], indices):
            (images,) = self.stream([indices])
            return images
        for part in prepared[2]:
            part.result()
        return prepared[1]

    def prepare(self, indices: Tensor) -> None:
        """Begins to decode what the next `fetch` is expected to ask for: int64 [B]. Only the last one counts."""
        images, parts = self._job(indices)
        # Its threads end when the source goes.
        self._background = self._background or ThreadPoolExecutor(self.workers, thread_name_prefix="prepare")
        self._prepared = indices, images, [self._background.submit(part) for part in parts]

    def stream(self, chunks: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """The images of each chunk in turn, as `fetch` gives them; threads work up to four chunks ahead.

        Chunks are asked for when their turn comes. What is decoded ahead is at most 256 MiB (or one chunk) if none is
        larger than the first. Leaving the generator ends its threads.

        Raises:
            DataError: in the caller's thread, when it is that chunk's turn.
        """
        rest = iter(chunks)
        first = next(rest, None)
        if first is None:
            return
        size = len(first) * 3 * self.size**2
        ahead = min(_AHEAD, max(1, _AHEAD_BYTES // max(1, size)))
        yield from filled(map(self._job, chain([first], rest)), workers=self.workers, ahead=ahead)

    def _job(self, indices: Tensor) -> tuple[Tensor, Iterator[Part]]:
        images = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        pixels, numbers = images.numpy(), indices.tolist()
        starts = range(0, len(numbers), _GROUP)
        return images, (partial(self._fill, pixels[at : at + _GROUP], numbers[at : at + _GROUP]) for at in starts)

    def _fill(self, images: npt.NDArray[np.uint8], indices: list[int]) -> None:
        """Writes rows [b, 3, H, W]. In numpy, because torch would start threads of its own in each of these."""
        for image, index in zip(images, indices, strict=True):
            if not self._kept.take(index, image):
                image[...] = self._decoded(index).transpose(2, 0, 1)
                if self._contents is not None:  # else it may not be what the fingerprint will say
                    self._kept.put(index, image)

    def _decoded(self, index: int) -> npt.NDArray[np.uint8]:
        path = f"{self.root}/{self.files[index]}"
        content = read_file(path)
        if self._contents is not None and hashlib.sha256(content).digest() != self._contents.sha256[index].tobytes():
            raise DataError(
                f"{path}: has changed since the folder was opened",
                cure="Put the old file back, or start again: to all that was made before, these are other images.",
            )
        try:
            return decode(content, self.size)
        except Undecodable as error:
            raise DataError(
                f"{path}: cannot be decoded: {error}",
                cure='Mend or remove the file, or set data.unreadable = "leave-out"; '
                "no other image is put in its place.",
            ) from error

    def fingerprint(self) -> str:
        """sha256 over the decoder, the size, names, contents and targets in order, and which images are left out.

        As 64 hex digits.

        Raises:
            DataError: a file cannot be read.
        """
        if self._contents is None:
            self._contents = self._survey().run(self.workers, self._progress)
        digest = hashlib.sha256(repr((self.name, DECODER, self.classes, self.shape, self.test_start)).encode())
        digest.update(b"".join(os.fsencode(file) + b"\0" for file in self.files))
        digest.update(self._contents.sha256.data)
        digest.update(self.targets.numpy().data)
        digest.update(repr(sorted(self._contents.unreadable)).encode())
        return digest.hexdigest()


class _Kept:
    """Decoded images, so that a folder that fits in memory is decoded once; other folders keep none."""

    def __init__(self, pixels: npt.NDArray[np.uint8] | None) -> None:
        self.pixels = pixels
        self.there = bytearray(0 if pixels is None else len(pixels))

    @classmethod
    def fitting(cls, images: int, shape: tuple[int, int, int]) -> _Kept:
        """Memory is taken up as images come, not now."""
        fits = images * shape[0] * shape[1] * shape[2] <= min(_KEPT_BYTES, _memory() // 4)
        return cls(np.empty((images, *shape), np.uint8) if fits else None)

    def take(self, index: int, image: npt.NDArray[np.uint8]) -> bool:
        """Writes the image, if it is there."""
        if self.pixels is None or not self.there[index]:
            return False
        image[...] = self.pixels[index]
        return True

    def put(self, index: int, image: npt.NDArray[np.uint8]) -> None:
        """Keeps the image. Two threads may write one image, and then write the same."""
        if self.pixels is not None:
            self.pixels[index] = image
            self.there[index] = 1


def _memory() -> int:
    """Bytes that this process may use: the machine's, or fewer where a container (cgroup 2 or 1) sets a limit."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # it is not there, or says "max"
            found.append(int(Path(limit).read_text()))
    return min(found)


def open_folder(
    root: Path,
    size: int = DEFAULT_SIZE,
    unreadable: Unreadable = "error",
    *,
    progress: Progress | None = None,
    quick: bool = False,
) -> FolderSource:
    """Scans an image folder and, unless `quick`, reads what is not known from an earlier time: see `FolderSource`.

    Raises:
        DataError: when there is no such folder, a class has no image, or train and test differ in their classes.
    """
    workers = min(32, len(os.sched_getaffinity(0)))
    return FolderSource(root, scan(root), size, unreadable, workers=workers, progress=progress, quick=quick)

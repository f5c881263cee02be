"""Data sets that fit in memory: one uint8 tensor of images that is indexed."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill.data.pixels import rows_of
from distill.errors import DataError

DIGITS_FILE = Path(__file__).parent / "assets" / "digits.safetensors"


@dataclass(frozen=True)
class MemorySource:
    """A source that holds all its images, decoded.

    Args:
        name: name of the data set.
        classes: the C class names, in the order of the targets.
        images: uint8 [N, ch, H, W].
        targets: int64 [N], the true labels.
        test_start: index of the first official test image; None when there is no such part.
    """

    name: str
    classes: tuple[str, ...]
    images: Tensor
    targets: Tensor
    test_start: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def decodes(self) -> bool:
        """Nothing is decoded on demand."""
        return False

    def fetch(self, indices: Tensor) -> Tensor:
        """int64 [B] -> uint8 [B, ch, H, W], in any order, repeated or not."""
        return rows_of(self.images, indices)

    @property
    def unreadable(self) -> dict[int, str]:
        """None: all images are here."""
        return {}

    @property
    def ignored(self) -> dict[str, int]:
        """None."""
        return {}

    @property
    def unused(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def undecided(self) -> int:
        """None."""
        return 0

    def prepare(self, indices: Tensor) -> None:
        """Nothing to do."""

    def stream(self, chunks: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """The images of each chunk in turn, as `fetch` gives them."""
        for indices in chunks:
            yield self.fetch(indices)

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        header = (self.name, self.classes, tuple(self.images.shape), self.test_start)
        digest.update(repr(header).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.targets.contiguous().numpy().data)
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """sha256 over names, shape, images and targets, in order, as 64 hex digits."""
        return self._fingerprint


def joined(name: str, classes: tuple[str, ...], parts: list[tuple[Tensor, Tensor]]) -> MemorySource:
    """A source of (images, targets) of the official training part and the official test part, in this order."""
    return MemorySource(
        name=name,
        classes=classes,
        images=torch.cat([images for images, _ in parts]),
        targets=torch.cat([targets for _, targets in parts]),
        test_start=len(parts[0][1]),
    )


def open_digits() -> MemorySource:
    """The 1,797 digits in the package: uint8 [1797, 1, 8, 8], no test part of their own. See assets/DIGITS.md."""
    try:
        tensors = load_file(DIGITS_FILE)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{DIGITS_FILE}: cannot be read: {error}", cure="Install the package again.") from error
    return MemorySource(
        name="digits",
        classes=tuple(str(digit) for digit in range(10)),
        images=tensors["images"],
        targets=tensors["targets"].long(),
    )

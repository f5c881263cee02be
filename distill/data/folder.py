"""Image folders of any size: scanned without opening an image, decoded on demand.

Two layouts. `root/<class>/*.jpg` has no test part. `root/train/<class>/*.jpg` has one when `root/test`, or else
`root/val` or `root/validation`, has class folders too; of several, the first of that order is the test part and the
others are not used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from distill.errors import DataError

DEFAULT_SIZE = 224
_TEST_FOLDERS = ("test", "val", "validation")
_LAYOUT = "Expected are <root>/<class>/ or <root>/train/<class>/ and <root>/test/<class>/, with images in them."


@dataclass(frozen=True)
class FolderSource:
    """A source whose images are files.

    Args:
        root: the folder.
        classes: the C class names, sorted.
        files: N paths relative to `root`, with forward slashes; training part first.
        targets: int64 [N].
        test_start: index of the first official test image; None when there is no such part.
        size: side in pixels of what `fetch` returns.
        workers: threads that decode.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    targets: Tensor
    test_start: int | None
    size: int = DEFAULT_SIZE
    workers: int = 1
    name: str = "folder"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels (always 3), height, width."""
        return 3, self.size, self.size

    @property
    def decodes(self) -> bool:
        """Every fetch opens files."""
        return True

    def fetch(self, indices: Tensor) -> Tensor:
        """int64 [B] -> uint8 [B, 3, H, W], in any order, repeated or not; the files are decoded in parallel.

        Raises:
            DataError: naming the first file, in the order of `indices`, that cannot be decoded.
        """
        images = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        paths = [self.root / self.files[index] for index in indices.tolist()]
        if not paths:
            return images
        # A pool a call: no thread outlives it, whatever becomes of the source. Starting one costs less than one image.
        with ThreadPoolExecutor(min(self.workers, len(paths))) as pool:
            for row, pixels in enumerate(pool.map(lambda path: decode(path, self.size), paths)):
                images[row] = pixels
        return images

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.name, self.classes, self.shape, self.test_start)).encode())
        for file in self.files:
            path = self.root / file
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}", cure="The folder has changed.") from error
            digest.update(os.fsencode(file) + b"\0" + str(size).encode() + b"\n")
        digest.update(self.targets.contiguous().numpy().data)
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """sha256 over relative paths, file sizes, targets and image size, as 64 hex digits. Opens no file."""
        return self._fingerprint


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB; 16-bit grey keeps its upper byte, where PIL's own conversion would clip to white."""
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def decode(path: Path, size: int) -> Tensor:
    """One file, uint8 [3, size, size]: the centre square, resized with bicubic interpolation and antialiasing.

    This is 'resize the shorter side, then crop the centre' in one step, so that a long thin image costs no memory.

    Raises:
        DataError: naming the file, when it is no image, cut short, damaged, or larger than PIL permits.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{width}x{height} pixels, more than the {Image.MAX_IMAGE_PIXELS} that are accepted")
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            square = _to_rgb(image).resize(
                (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
            )
    except Exception as error:  # PIL's decoders raise whatever a damaged file makes them stumble over
        raise DataError(
            f"{path}: cannot be decoded: {type(error).__name__}: {error}",
            cure="Mend or remove the file; no other image is put in its place.",
        ) from error
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, hidden entries left out."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}", cure=_LAYOUT) from error


def _images_below(folder: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Paths of the image files in a folder and its folders. Links are followed, but never in a circle."""
    status = Path(folder).stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise DataError(f"{folder}: is a link to a folder that it is in", cure="Remove the link.")
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _images_below(entry.path, above | {identity})
        elif entry.name.lower().endswith(IMG_EXTENSIONS):
            if not entry.is_file():
                raise DataError(f"{entry.path}: is a broken link, or no file", cure="Mend or remove it.")
            yield entry.path


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in _entries(str(folder)) if entry.is_dir()))


def _scan(root: Path, part: str) -> tuple[tuple[str, ...], list[str], list[int]]:
    """Classes, paths relative to root, and targets, sorted by path within each class."""
    folder = root / part
    classes = _class_folders(folder)
    files: list[str] = []
    targets: list[int] = []
    for target, name in enumerate(classes):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{folder}: the class folder {name!r} has a name that is not UTF-8") from error
        found = sorted(Path(path).relative_to(root).as_posix() for path in _images_below(str(folder / name)))
        if not found:
            raise DataError(
                f"{folder / name}: no image in this class folder",
                cure=f"Remove the folder, or add images ({' '.join(IMG_EXTENSIONS)}).",
            )
        files += found
        targets += [target] * len(found)
    return classes, files, targets


def _train_and_test(root: Path) -> tuple[str, str | None]:
    """Names of the folders with the training and the test part, '' being root itself."""
    train = root / "train"
    if not train.is_dir() or not _class_folders(train):
        return "", None
    for name in _TEST_FOLDERS:
        # A test folder without class folders holds unlabelled images, as ImageNet's does.
        if (root / name).is_dir() and _class_folders(root / name):
            return "train", name
    return "train", None


def open_folder(root: Path, size: int = DEFAULT_SIZE) -> FolderSource:
    """Scans an image folder; opens no image.

    Raises:
        DataError: when there is no such folder, a class has no image, or train and test differ in their classes.
    """
    if not root.is_dir():
        raise DataError(f"{root}: is not a folder", cure="Name a folder of class folders in data.root.")
    train_name, test_name = _train_and_test(root)
    classes, files, targets = _scan(root, train_name)
    if len(classes) < 2:
        found = f"only the class folder {classes[0]!r}" if classes else "no class folder"
        raise DataError(f"{root / train_name}: {found}, expected two or more", cure=_LAYOUT)
    test_start = None
    if test_name is not None:
        test_classes, test_files, test_targets = _scan(root, test_name)
        if test_classes != classes:
            raise DataError(_difference(root, train_name, classes, test_name, test_classes))
        test_start = len(files)
        files, targets = files + test_files, targets + test_targets
    return FolderSource(
        root=root,
        classes=classes,
        files=tuple(files),
        targets=torch.tensor(targets, dtype=torch.int64),
        test_start=test_start,
        size=size,
        workers=min(32, os.cpu_count() or 1),
    )


def _difference(
    root: Path, train: str, train_classes: tuple[str, ...], test: str, test_classes: tuple[str, ...]
) -> str:
    def listed(names: set[str]) -> str:
        first = ", ".join(sorted(names)[:5]) or "none"
        return f"{first} and {len(names) - 5} more" if len(names) > 5 else first

    only_train, only_test = set(train_classes) - set(test_classes), set(test_classes) - set(train_classes)
    return f"{root}: class folders only in {train}: {listed(only_train)}; only in {test}: {listed(only_test)}"

"""Fashion-MNIST from files in the idx format of MNIST, plain or gzipped.

Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
arXiv 1708.07747. The format: two zero bytes, a type (8: bytes), the number of axes, one big-endian 32-bit size an
axis, then the values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.data.memory import MemorySource, joined
from distill.errors import DataError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_STEMS = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
_CURE = "Get the file again, whole."
# No idx file of MNIST's family is near this; a gzip bomb stops here.
_LARGEST = 1 << 30


def _file_bytes(path: Path) -> bytes:
    """The file's content, unzipped when its name ends in .gz."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path, "rb") as file:
            content = file.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}", cure=_CURE) from error
    if len(content) > _LARGEST:
        raise DataError(f"{path}: unzips to more than {_LARGEST} bytes", cure=_CURE)
    return content


def read_idx(path: Path, axes: int) -> Tensor:
    """One idx file of unsigned bytes, uint8 with `axes` axes.

    Raises:
        DataError: naming the file, when it is unreadable, of another format, cut short, or too long.
    """
    content = _file_bytes(path)
    header = 4 + 4 * axes
    if len(content) < header:
        raise DataError(f"{path}: {len(content)} bytes, but the header alone has {header}", cure=_CURE)
    magic = content[:4]
    if magic != bytes((0, 0, 8, axes)):
        raise DataError(
            f"{path}: starts with {magic.hex()}, an idx file of bytes with {axes} axes with 000008{axes:02x}"
        )
    sizes = struct.unpack(f">{axes}I", content[4:header])
    if len(content) - header != math.prod(sizes):
        shape = "x".join(map(str, sizes))
        raise DataError(
            f"{path}: {len(content) - header} values, but its header says {shape} = {math.prod(sizes)}", cure=_CURE
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(sizes).copy())


def _find(folder: Path, stem: str) -> Path | None:
    for path in (folder / stem, folder / f"{stem}.gz"):
        if path.is_file():
            return path
    return None


def _read_part(folder: Path, images_stem: str, labels_stem: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, 1, H, W] and labels int64 [n] of one part."""
    images_path, labels_path = (_find(folder, stem) for stem in (images_stem, labels_stem))
    if images_path is None or labels_path is None:
        missing = images_stem if images_path is None else labels_stem
        raise DataError(f"{folder}: has no {missing} and no {missing}.gz", cure=fashion_cure())
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels) or len(images) == 0:
        raise DataError(f"{images_path}: {len(images)} images, but {labels_path} has {len(labels)} labels", cure=_CURE)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{images_path}: images of {images.shape[1]}x{images.shape[2]} pixels, expected 28x28")
    if int(labels.max()) >= len(FASHION_CLASSES):
        raise DataError(f"{labels_path}: label {int(labels.max())}, expected 0 to {len(FASHION_CLASSES) - 1}")
    return images.unsqueeze(1), labels.long()


def fashion_cure() -> str:
    """How to get Fashion-MNIST."""
    return (
        "Install it with `apt-get install dataset-fashion-mnist`, or name the folder of its idx files in data.root, "
        "or set data.download = true."
    )


def find_fashion(roots: list[Path]) -> Path | None:
    """The first folder among `roots`, or torchvision's folder in it, that holds an idx file of Fashion-MNIST."""
    stems = [stem for part in _STEMS for stem in part]
    for root in roots:
        for folder in (root, root / "FashionMNIST" / "raw", root / "raw"):
            if any(_find(folder, stem) is not None for stem in stems):
                return folder
    return None


def read_fashion(folder: Path) -> MemorySource:
    """Fashion-MNIST from the four idx files in `folder`: uint8 [N, 1, 28, 28], training part first.

    Raises:
        DataError: when a file is missing or damaged, naming it.
    """
    return joined("fashion-mnist", FASHION_CLASSES, [_read_part(folder, *stems) for stems in _STEMS])

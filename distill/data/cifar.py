"""CIFAR-10 and CIFAR-100, from the binary or the python version of their files.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The binary version is plain records and is
preferred. The python version is pickled: each file is first compared with the md5 that torchvision knows, and then read
by an unpickler that can build numpy arrays and nothing else. torchvision's own loader unpickles freely and is not used.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from distill.data.memory import MemorySource, joined
from distill.errors import DataError

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class CifarLayout:
    """Where one of the two data sets keeps what. `label_bytes` stand before each binary record, the last one counts."""

    name: str
    num_classes: int
    label_bytes: int
    binary_folder: str
    binary_train: tuple[str, ...]
    binary_test: str
    binary_names: str
    torchvision: Any  # CIFAR10 or CIFAR100: names, md5 sums and the address of the python version
    labels_key: str


CIFAR_LAYOUTS: Mapping[str, CifarLayout] = {
    "cifar10": CifarLayout(
        name="cifar10",
        num_classes=10,
        label_bytes=1,
        binary_folder="cifar-10-batches-bin",
        binary_train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        binary_test="test_batch.bin",
        binary_names="batches.meta.txt",
        torchvision=CIFAR10,
        labels_key="labels",
    ),
    "cifar100": CifarLayout(
        name="cifar100",
        num_classes=100,
        label_bytes=2,
        binary_folder="cifar-100-binary",
        binary_train=("train.bin",),
        binary_test="test.bin",
        binary_names="fine_label_names.txt",
        torchvision=CIFAR100,
        labels_key="fine_labels",
    ),
}


def cifar_cure(layout: CifarLayout) -> str:
    """How to get the data set."""
    return (
        f"Name the folder that holds {layout.binary_folder}/ or {layout.torchvision.base_folder}/ in data.root, "
        "or set data.download = true."
    )


def find_cifar(layout: CifarLayout, roots: list[Path]) -> tuple[Path, bool] | None:
    """The folder with the files and whether they are of the binary version, which comes first."""
    versions = (
        (layout.binary_folder, layout.binary_train[0], True),
        (layout.torchvision.base_folder, layout.torchvision.train_list[0][0], False),
    )
    for folder_name, first_file, binary in versions:
        for root in roots:
            for folder in (root / folder_name, root):
                # cifar-10's binary and python files differ in their suffix; cifar-100's `train` also names a folder.
                if (folder / first_file).is_file():
                    return folder, binary
    return None


def read_cifar(layout: CifarLayout, folder: Path, *, binary: bool) -> MemorySource:
    """The data set from `folder`: uint8 [N, 3, 32, 32], training part first.

    Raises:
        DataError: when a file is missing, damaged, or not the published one, naming it.
    """
    return _read_binary(layout, folder) if binary else _read_python(layout, folder)


def _content(path: Path, layout: CifarLayout) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", cure=cifar_cure(layout)) from error


def _check_labels(path: Path, labels: Tensor, layout: CifarLayout) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= layout.num_classes:
        raise DataError(f"{path}: labels from {low} to {high}, expected 0 to {layout.num_classes - 1}")


def _class_names(path: Path, names: list[str], layout: CifarLayout) -> tuple[str, ...]:
    if len(names) != layout.num_classes or len(set(names)) != len(names):
        raise DataError(f"{path}: {len(set(names))} different class names, expected {layout.num_classes}")
    return tuple(names)


def _read_binary(layout: CifarLayout, folder: Path) -> MemorySource:
    names_path = folder / layout.binary_names
    try:
        text = _content(names_path, layout).decode("ascii")
    except UnicodeDecodeError as error:
        raise DataError(f"{names_path}: is not plain text: {error}", cure=cifar_cure(layout)) from error
    classes = _class_names(names_path, [line.strip() for line in text.splitlines() if line.strip()], layout)
    train = [_read_records(folder / name, layout) for name in layout.binary_train]
    parts = [
        (torch.cat([images for images, _ in train]), torch.cat([labels for _, labels in train])),
        _read_records(folder / layout.binary_test, layout),
    ]
    return joined(layout.name, classes, parts)


def _read_records(path: Path, layout: CifarLayout) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, 3, 32, 32] and labels int64 [n] of one binary file."""
    content = _content(path, layout)
    record = layout.label_bytes + _PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"{path}: {len(content)} bytes, expected a multiple of {record}, the bytes of one record",
            cure="Get the file again, whole.",
        )
    table = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(-1, record).copy())
    labels = table[:, layout.label_bytes - 1].long()
    _check_labels(path, labels, layout)
    return table[:, layout.label_bytes :].reshape(-1, 3, 32, 32), labels


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numbers, strings, lists, dicts and numpy arrays; whatever else a pickle asks for is an error."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        # numpy 2 moved the function, and its old place is deprecated: take it from an array instead.
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")


def _read_pickle(path: Path, md5: str, layout: CifarLayout) -> dict[str, Any]:
    """A file of the python version. The bytes that are compared are the bytes that are read."""
    content = _content(path, layout)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(
            f"{path}: md5 {found}, the published file has {md5}; the file was not opened",
            cure=f"Get the file again, or use the binary version ({layout.binary_folder}/).",
        )
    try:
        entry = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{path}: cannot be read: {error}", cure=cifar_cure(layout)) from error
    if not isinstance(entry, dict):
        raise DataError(f"{path}: holds a {type(entry).__name__}, expected a dict")
    return entry


def _read_batch(path: Path, md5: str, layout: CifarLayout) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, 3, 32, 32] and labels int64 [n] of one file of the python version."""
    entry = _read_pickle(path, md5, layout)
    pixels, labels = entry.get("data"), entry.get(layout.labels_key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise DataError(f"{path}: 'data' is not an array of bytes [n, {_PIXELS}]")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not labels:
        raise DataError(f"{path}: '{layout.labels_key}' is not a list of {len(pixels)} labels")
    if not all(type(label) is int for label in labels):
        raise DataError(f"{path}: '{layout.labels_key}' holds something that is not an integer")
    targets = torch.tensor(labels, dtype=torch.int64)
    _check_labels(path, targets, layout)
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy()), targets


def _read_python(layout: CifarLayout, folder: Path) -> MemorySource:
    published = layout.torchvision
    meta_path = folder / published.meta["filename"]
    meta = _read_pickle(meta_path, published.meta["md5"], layout)
    names = meta.get(published.meta["key"])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{meta_path}: '{published.meta['key']}' is not a list of names")
    parts = []
    for files in (published.train_list, published.test_list):
        batches = [_read_batch(folder / name, md5, layout) for name, md5 in files]
        parts.append((torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])))
    return joined(layout.name, _class_names(meta_path, names, layout), parts)
